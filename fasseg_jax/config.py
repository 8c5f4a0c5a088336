"""Configurations: the base that every file in `configs/` starts from, and how one is loaded.

A configuration is an `ml_collections.ConfigDict`. `configs/NAME.py` defines `get_config(variant)`, which takes
`base_config()` and changes a few lines; `load_config("configs/NAME.py:VARIANT")` evaluates it, and the command-line
programs accept `--config configs/NAME.py:VARIANT --config.model.dtype=bfloat16` and the like.
"""

import importlib.util
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from fasseg_jax.runtime.files import Path

__all__ = ["base_config", "changed_fields", "flat_fields", "load_config", "resnet", "swin", "use_mask2former"]


def resnet(depth: int, norm: str = "frozen_batch_norm") -> ConfigDict:
    """ResNet backbone; `depth` 50 or 101, `norm` "frozen_batch_norm" or "batch_norm" (over the global batch)."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    return ConfigDict(
        {
            "kind": "resnet",  # of the backbone; the other is "swin"
            "blocks": blocks[depth],  # bottleneck blocks of each of the four stages
            "width": 64,  # channels of the stem and of the first stage's 3x3 convolutions
            # "frozen_batch_norm" (constant, the ImageNet statistics) or "batch_norm" (trained, over the global batch).
            "norm": norm,
        }
    )


def swin(size: str) -> ConfigDict:
    """Swin backbone; `size` is "t", "s", "b" or "l"."""
    embed_dim, blocks, heads, window = {
        "t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
        "s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
        "b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
        "l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
    }[size]
    return ConfigDict(
        {
            "kind": "swin",  # of the backbone; the other is "resnet"
            "embed_dim": embed_dim,  # channels of the first stage; each next one has twice as many
            "blocks": blocks,  # of each of the four stages
            "heads": heads,  # of the attention, in each stage
            "window": window,  # tokens along a side of the square in which a token attends
            "mlp_ratio": 4,  # hidden channels of a block's MLP, as a multiple of its channels
            "drop_path": 0.3,  # of the last block; rises linearly from 0 at the first
        }
    )


def base_config() -> ConfigDict:
    """FASeg with ResNet-50 by the recipe for ADE20K (SPEC sections 2 to 6; paper section 4)."""
    config = ConfigDict()

    config.data = ConfigDict(
        {
            # "folder" (one's own images/ and annotations/, or ADEChallengeData2016), "cityscapes", "tfds" (a data set
            # that `python -m fasseg_jax.data.tfds` prepared), or "shapes" (generated, needs no files).
            "source": "folder",
            "root": "",  # the data set's folder, of "tfds" the one that the preparation printed
            # The class table, names and palette: one of fasseg_jax/class_tables/, or the path of a .csv file; if empty,
            # classes.csv or classes.txt in `root`.
            "dataset": "ade20k",
            "ignore_label": 255,  # of pixels that count for nothing, in label files and in training
            "reduce_zero_label": True,  # label files hold 0 = other, 1..K: subtract one, 0 becomes ignored
            "max_targets": 40,  # T, classes in one training crop at most; more is an error (`--check` counts them)
            "num_threads": 8,  # that read and augment, a batch each; no more than CPU cores are of use
            "prefetch": 8,  # batches read ahead on the host
            # Only of the source "shapes":
            "shapes": {
                "size": (128, 128),  # height and width in pixels
                "training": 4096,  # different samples of the training split
                "validation": 128,  # different samples of the validation split
            },
        }
    )

    config.model = ConfigDict(
        {
            "num_classes": 150,  # K; the class logits have one more, "no object", last
            "dtype": "float32",  # of the compute, float32 or bfloat16; parameters stay float32
            "remat": False,  # recompute activations of backbone and decoder in training: far less memory, more time
            "hidden_dim": 256,  # C, channels of pixel decoder and decoder
            "num_heads": 8,  # M, of both kinds of attention
            "backbone": resnet(50),  # of `resnet` or `swin`
            # How deformable attention samples: "gather", "dense" (products, for TPUs), "fused" (one kernel, for NVIDIA
            # GPUs), or "auto" for what suits the device.
            "deformable_attention": "auto",
            # A positional encoding of the keys: "conditional" (depthwise 3x3 convolution of the features) or "sine".
            "key_positions": "conditional",
            # Of the deformable attention encoder over strides 32, 16, 8:
            "pixel_decoder": {
                "num_layers": 6,  # encoder layers
                "num_points": 4,  # sampling points per head and level
                "ffn_dim": 1024,  # hidden channels of a layer's feed-forward network
            },
            # Of the transformer decoder over the queries:
            "decoder": {
                "num_queries": 100,  # Q, masks predicted for each image
                "num_layers": 13,  # L; each of them, and the initial queries, predict and are trained
                "ffn_dim": 2048,  # hidden channels of a layer's feed-forward network
                "mask_threshold": 0.15,  # attention is allowed where the predicted mask's probability reaches this
                "positional_queries": "dfpq",  # "dfpq" (from the preceding cross attention) or "learned"
                # What the first DFPQ pools, there being no attention yet. "background" (outside the predicted masks)
                # is what the released weights were trained with, "foreground" what the paper describes.
                "first_focus": "background",
                "hrca": True,  # every fourth layer attends to stride 4; without, the layers cycle over 32, 16, 8
                "hrca_omega": 32,  # one in omega high-resolution tokens is attended to
                "hrca_selection": "window",  # "window" (released weights) or "pixel" (paper, equation 6)
            },
        }
    )

    config.loss = ConfigDict(
        {
            "class_weight": 2.0,  # of the class term, in the loss and in the cost by which queries are matched
            "mask_weight": 5.0,  # of the masks' binary cross-entropy, in both
            "dice_weight": 5.0,  # of the masks' Dice loss, in both
            "no_object_weight": 0.1,  # of queries without a target within the class cross-entropy; others have 1
            "num_points": 12544,  # P, points at which masks are compared
            "oversample_ratio": 3.0,  # the loss draws so many times P points, of which it keeps the least certain
            "importance_ratio": 0.75,  # share of P that is kept so; the rest is drawn uniformly
        }
    )

    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,  # at the first step; there is no warm-up
            "poly_power": 0.9,  # the rate falls to 0 as (1 - step / steps) to this power
            "backbone_multiplier": 0.1,  # of the backbone's rate
            "weight_decay": 0.05,  # AdamW's; none on norms, embeddings and tables of relative positions
            "betas": (0.9, 0.999),  # AdamW's decay of the first and second moments
            "eps": 1e-8,  # AdamW's; it matters, as clipped gradients are about as small
            "clip_norm": 0.01,  # of the whole model's gradient, before AdamW
        }
    )

    config.train = ConfigDict(
        {
            "steps": 160_000,  # optimiser steps, of one batch each
            "batch_size": 16,  # of all devices and hosts together
            "accumulation": 1,  # parts that a batch is computed in, one after the other, to save memory
            "seed": 0,  # of initialisation, data order, augmentation and sampled points
            # Start weights: a checkpoint directory of convert.py, a backbone or a whole model. If a model has other
            # classes, its class head starts anew. Empty: random.
            "init": "",
            "ema_decay": 0.0,  # of an exponential moving average of the parameters, used for evaluation; 0: none
            "shard_parameters": False,  # divide parameters and optimiser state among the devices (large models)
            "log_every": 20,  # steps between lines of the log
            "checkpoint_every": 2_000,  # steps between checkpoints
            "evaluate_every": 10_000,  # steps between evaluations: mIoU on the validation split, and a picture
            "evaluation_stride": 1,  # evaluate every so-manieth sample of the split
            "keep_checkpoints": 2,  # the latest ones; the best by mIoU is kept besides
        }
    )

    # Shorter side drawn from `short_sides`, longer side at most `max_long_side`, then a crop (height, width).
    config.augmentation = ConfigDict(
        {
            "short_sides": tuple(int(512 * 0.1 * j) for j in range(5, 21)),  # in pixels, one drawn for each sample
            "max_long_side": 2048,  # in pixels; a longer side scales both down
            "crop": (512, 512),  # height and width in pixels, multiples of 32; smaller samples are padded
            "color_jitter": True,  # brightness, contrast, saturation and hue at random
            "flip": True,  # left and right exchanged in half of the samples
        }
    )

    # How photos are predicted (see fasseg_jax/views.py); all lengths in pixels.
    config.inference = ConfigDict(
        {
            "mode": "single",  # "single", "multi_scale" or "sliding"
            # The photo's shorter side becomes `short_side`, unless the longer would exceed `max_long_side`.
            "short_side": 512,
            "max_long_side": 2048,  # of the resized photo; both sides shrink until it is kept
            # Averages predictions at several sizes, to which the photo of the test size above is resized.
            "multi_scale": {"short_sides": (256, 384, 512, 640, 768, 896), "max_long_side": 3584, "flip": True},
            # Windows (height, width) over the photo, () for the size of a training crop; neighbours overlap by at least
            # `overlap` of their length. The photo's shorter side becomes `short_side` first; 0 keeps the photo's size.
            "sliding": {"window": (), "overlap": 1 / 3, "short_side": 0},
            # The network's inputs are padded to multiples of this. 32 is exact; 64 or 128 make fewer shapes to compile,
            # and scores that differ a little.
            "round_to": 32,
        }
    )
    return config


def use_mask2former(config: ConfigDict) -> None:
    """Turn FASeg's `config` into Mask2Former, the paper's baseline: every contribution of FASeg off."""
    config.model.key_positions = "sine"
    config.model.decoder.positional_queries = "learned"
    config.model.decoder.hrca = False
    config.model.decoder.num_layers = 9
    config.model.decoder.mask_threshold = 0.5


def load_config(path: str) -> ConfigDict:
    """Evaluate a configuration file.

    Args:
      path: "FILE.py:VARIANT" or "FILE.py", e.g. "configs/ade20k.py:r50". A relative path is looked for below the
        working directory and then beside the package (a clone of the repository).

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file knows no such variant.
    """
    name, _, variant = str(path).partition(":")
    candidates = [Path(name), Path(__file__).parents[1] / name]
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"configuration {name!r}: looked for {' and '.join(map(str, candidates))}")
    spec = importlib.util.spec_from_file_location(f"fasseg_jax_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


# Without influence on what is learnt.
IMMATERIAL = (
    "data.num_threads",
    "data.prefetch",
    "data.root",
    "model.deformable_attention",
    "model.remat",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "train.evaluation_stride",
    "train.shard_parameters",
    "train.init",
)
# Parameters of one do not fit the other; `model` apart from its dtype.
ARCHITECTURE = "model."


def changed_fields(saved: ConfigDict, current: ConfigDict) -> list[str]:
    """Fields that matter and differ, a line each.

    Raises:
      ValueError: the network's architecture changed, so that the run's checkpoints do not fit.
    """
    before, after = (flat_fields(config) for config in (saved, current))
    changed = [
        (name, f"config.{name} was {before.get(name)!r}, is {after.get(name)!r}")
        for name in sorted(before.keys() | after.keys())
        if name not in IMMATERIAL and before.get(name) != after.get(name)
    ]
    architecture = [line for name, line in changed if name.startswith(ARCHITECTURE) and name != "model.dtype"]
    if architecture:
        raise ValueError(
            "this run's checkpoints are of another network: " + "; ".join(architecture) + ". Use another --workdir"
        )
    return [line for _, line in changed]


def flat_fields(config: ConfigDict) -> dict[str, Any]:
    """Values by dotted name; tuples as lists, which overrides may hold in their place."""
    fields = flatten_dict(config.to_dict(), sep=".")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
