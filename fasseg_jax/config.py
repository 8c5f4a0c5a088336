"""Configurations: the base that every file in `configs/` starts from, and how one is loaded.

A configuration is an `ml_collections.ConfigDict`. `configs/NAME.py` defines `get_config(variant)`, which takes
`base_config()` and changes a few lines; `load_config("configs/NAME.py:VARIANT")` evaluates it, and the command-line
programs accept `--config configs/NAME.py:VARIANT --config.model.dtype=bfloat16` and the like.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

__all__ = ["base_config", "load_config", "resnet", "swin", "use_mask2former"]


def resnet(depth: int, norm: str = "frozen_batch_norm") -> ConfigDict:
    """ResNet backbone; `depth` 50 or 101, `norm` "frozen_batch_norm" or "batch_norm" (over the global batch)."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    return ConfigDict({"kind": "resnet", "blocks": blocks[depth], "width": 64, "norm": norm})


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
            "kind": "swin",
            "embed_dim": embed_dim,
            "blocks": blocks,
            "heads": heads,
            "window": window,
            "mlp_ratio": 4,
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
            # Only of "shapes": height and width in pixels, and how many different samples each split has.
            "shapes": {"size": (128, 128), "training": 4096, "validation": 128},
        }
    )

    config.model = ConfigDict(
        {
            "num_classes": 150,  # K; the class logits have one more, "no object", last
            "dtype": "float32",  # of the compute, float32 or bfloat16; parameters stay float32
            "remat": False,  # in training recompute each block's activations: far less memory, about a third more time
            "hidden_dim": 256,  # C
            "num_heads": 8,  # M, of both kinds of attention
            "backbone": resnet(50),
            # A positional encoding of the keys: "conditional" (depthwise 3x3 convolution of the features) or "sine".
            "key_positions": "conditional",
            "pixel_decoder": {
                "num_layers": 6,
                "num_points": 4,  # sampling points per head and level
                "ffn_dim": 1024,
            },
            "decoder": {
                "num_queries": 100,  # Q
                "num_layers": 13,  # L
                "ffn_dim": 2048,
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
            "class_weight": 2.0,
            "mask_weight": 5.0,
            "dice_weight": 5.0,
            "no_object_weight": 0.1,
            "num_points": 12544,  # P, points at which masks are compared
            "oversample_ratio": 3.0,
            "importance_ratio": 0.75,
        }
    )

    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,
            "poly_power": 0.9,
            "backbone_multiplier": 0.1,
            "weight_decay": 0.05,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "clip_norm": 0.01,  # of the whole model's gradient
        }
    )

    config.train = ConfigDict(
        {
            "steps": 160_000,
            "batch_size": 16,  # of all devices and hosts together
            "accumulation": 1,  # parts that a batch is computed in, one after the other, to save memory
            "seed": 0,  # of initialisation, data order, augmentation and sampled points
            # Start weights: a checkpoint directory of convert.py, a backbone or a whole model. If a model has other
            # classes, its class head starts anew. Empty: random.
            "init": "",
            "ema_decay": 0.0,  # of an exponential moving average of the parameters, used for evaluation; 0: none
            "shard_parameters": False,  # divide parameters and optimiser state among the devices (large models)
            # In steps:
            "log_every": 20,
            "checkpoint_every": 2_000,
            "evaluate_every": 10_000,  # mIoU on the validation split, and a picture
            "evaluation_stride": 1,  # evaluate every so-manieth sample of the split
            "keep_checkpoints": 2,  # the latest ones; the best by mIoU is kept besides
        }
    )

    # Shorter side drawn from `short_sides`, longer side at most `max_long_side`, then a crop (height, width).
    config.augmentation = ConfigDict(
        {
            "short_sides": tuple(int(512 * 0.1 * j) for j in range(5, 21)),
            "max_long_side": 2048,
            "crop": (512, 512),
            "color_jitter": True,
            "flip": True,
        }
    )

    # Pixels: the photo's shorter side becomes `short_side`, unless the longer would exceed `max_long_side`.
    config.inference = ConfigDict(
        {
            "short_side": 512,
            "max_long_side": 2048,
            "multi_scale": {"short_sides": (256, 384, 512, 640, 768, 896), "max_long_side": 3584, "flip": True},
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
