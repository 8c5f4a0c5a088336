"""The base configuration, and the parts that recipes exchange.

A configuration is an `ml_collections.ConfigDict`. A recipe, `configs/NAME.py`, defines `get_config(variant)`, which
takes `base_config()` and changes a few fields. `load_config("configs/NAME.py:VARIANT")` evaluates it, and the programs
accept `--config configs/NAME.py:VARIANT --config.model.dtype=bfloat16` and the like.
"""

from ml_collections import ConfigDict

__all__ = ["base_config", "convnext", "resnet", "swin", "use_mask2former", "vit"]


def resnet(depth: int, norm: str = "frozen_batch_norm") -> ConfigDict:
    """A ResNet backbone; `depth` is 50 or 101, `norm` "frozen_batch_norm" or "batch_norm" (over the global batch)."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
    return ConfigDict(
        {
            "kind": "resnet",  # of the backbone; the other kinds are "swin", "convnext" and "vit"
            "blocks": blocks[depth],  # number of bottleneck blocks in each of the four stages
            "width": 64,  # channels of the stem and of the 3x3 convolutions in the first stage
            # "frozen_batch_norm" (constant ImageNet statistics) or "batch_norm" (trained, over the global batch).
            "norm": norm,
        }
    )


def swin(size: str) -> ConfigDict:
    """A Swin backbone; `size` is "t", "s", "b" or "l"."""
    embed_dim, blocks, heads, window = {
        "t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
        "s": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
        "b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
        "l": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
    }[size]
    return ConfigDict(
        {
            "kind": "swin",  # of the backbone; the other kinds are "resnet", "convnext" and "vit"
            "embed_dim": embed_dim,  # channels of the first stage; each later stage doubles them
            "blocks": blocks,  # number of blocks in each of the four stages
            "heads": heads,  # attention heads in each stage
            "window": window,  # side of the square window within which tokens attend, in tokens
            "mlp_ratio": 4,  # hidden channels of a block's MLP, as a multiple of the block's channels
            "drop_path": 0.3,  # of the last block; rises linearly from 0 at the first
        }
    )


def convnext(size: str, version: int = 1) -> ConfigDict:
    """A ConvNeXt backbone; `size` is "t", "s", "b" or "l", `version` 1 or 2."""
    width, blocks, drop_path = {
        "t": (96, (3, 3, 9, 3), 0.4),
        "s": (96, (3, 3, 27, 3), 0.3),
        "b": (128, (3, 3, 27, 3), 0.4),
        "l": (192, (3, 3, 27, 3), 0.4),
    }[size]
    return ConfigDict(
        {
            "kind": "convnext",  # of the backbone; the other kinds are "resnet", "swin" and "vit"
            "blocks": blocks,  # number of blocks in each of the four stages
            "width": width,  # channels of the first stage; each later stage doubles them
            "version": version,  # 1, or 2 (ConvNeXt V2: a global response norm in place of the scale of channels)
            "drop_path": drop_path,  # of the last block; rises linearly from 0 at the first
        }
    )


def vit(size: str, version: int = 2, registers: bool = False) -> ConfigDict:
    """A plain Vision Transformer, of DINOv2 or DINOv3 (`version` 2 or 3).

    Args:
      size: "s", "b" or "l"; "g" of DINOv2; "s+", "h+" or "7b" of DINOv3.
      version: 2 or 3.
      registers: whether a DINOv2 has registers; a DINOv3 always has.
    """
    width, depth, num_heads, mlp_width, gated = {
        "s": (384, 12, 6, 1536, False),
        "b": (768, 12, 12, 3072, False),
        "l": (1024, 24, 16, 4096, False),
        "g": (1536, 40, 24, 4096, True),
        "s+": (384, 12, 6, 1536, True),
        "h+": (1280, 32, 20, 5120, True),
        "7b": (4096, 40, 32, 8192, True),
    }[size]
    return ConfigDict(
        {
            "kind": "vit",  # of the backbone; the other kinds are "resnet", "swin" and "convnext"
            "version": version,  # 2 (DINOv2: a table of positions) or 3 (DINOv3: rotary positions, keys without bias)
            "width": width,  # channels of the tokens
            "depth": depth,  # number of blocks
            "num_heads": num_heads,  # attention heads
            "patch_size": 14 if version == 2 else 16,  # side of a patch in pixels
            "mlp_width": mlp_width,  # hidden channels of a block's MLP
            "gated": gated,  # whether the MLP is SwiGLU in place of GELU
            "attention_bias": size != "7b",  # whether queries, values and (in version 2) keys have a bias
            "num_registers": 4 if registers or version == 3 else 0,  # number of register tokens
            "drop_path": 0.0,  # of the last block; rises linearly from 0 at the first
        }
    )


def base_config() -> ConfigDict:
    """FASeg with ResNet-50 and its recipe for ADE20K (docs/specification.md, sections 2 to 6; paper, section 4)."""
    config = ConfigDict()

    config.data = ConfigDict(
        {
            # "folder" (your own images/ and annotations/, or ADEChallengeData2016), "cityscapes", "tfds" (a data set
            # that `python -m fasseg_jax.data.tfds` or tensorflow-datasets prepared), or "shapes" (generated, needs no
            # files).
            "source": "folder",
            "root": "",  # the data set's folder; for "tfds" the one that the preparation printed
            # The class table, with names and palette: one of fasseg_jax/data/class_tables/, or the path of a .csv file.
            # Empty: classes.csv, classes.txt or classes.yaml in `root`, or the ids in its label maps.
            "dataset": "ade20k",
            "ignore_label": 255,  # label of ignored pixels, in label files and in training
            "reduce_zero_label": True,  # label files hold 0 for "other" and 1 to K: subtract one, and ignore 0
            # What labels are drawn on if EXIF turns a photo: "viewer" (on what viewers and predict.py show), "stored"
            # (on the pixels as stored), or "auto" (as the label map's size tells; if it fits both, as "viewer").
            "label_orientation": "auto",
            # Share of the training photos that a hash of the names takes if a folder has no validation photos.
            "validation_share": 0.2,
            # Which photos stay together then: "auto" (frames of a film: 10 or more names that differ only in the last
            # number), "none", or a regular expression (names that begin with the same match).
            "group": "auto",
            "max_targets": 40,  # T, most classes in one training crop; more are an error (`--check` counts them)
            # Photos with rare classes are visited more often: a class that a smaller share f of the photos holds than
            # this repeats its photos sqrt(repeat_below / f) times in an epoch; 0: every photo once.
            "repeat_below": 0.0,
            "num_threads": 8,  # that read and augment, one batch each; at most one per CPU core is useful
            "prefetch": 8,  # batches read ahead on the host
            # Used by the source "tfds" for data sets that tensorflow-datasets prepared by their names:
            "tfds": {
                # NAME, NAME:VERSION or NAME/CONFIG:VERSION below `root`; without VERSION the newest. Empty: `root` is
                # the folder of one data set.
                "name": "",
                "image": "",  # field of the photo. Empty: the only picture of three channels
                "labels": "",  # field of the label map. Empty: the only picture of one channel
                "training": "train",  # the split to train on, or a part of it, such as "train[:90%]"
                "validation": "validation",  # the split to evaluate
            },
            # Used by the source "shapes" only:
            "shapes": {
                "size": (128, 128),  # (height, width) in pixels
                "training": 4096,  # number of samples in the training split
                "validation": 128,  # number of samples in the validation split
            },
        }
    )

    config.model = ConfigDict(
        {
            "num_classes": 150,  # K; the class logits have one more at the end, "no object"
            "dtype": "float32",  # of the computation, float32 or bfloat16; parameters stay float32
            "remat": False,  # rematerialize activations of backbone and decoder in training: less memory, more time
            "hidden_dim": 256,  # C, channels of the pixel decoder and the transformer decoder
            "num_heads": 8,  # M, heads of attention and of deformable attention
            "backbone": resnet(50),  # made by `resnet`, `swin`, `convnext` or `vit`
            # How deformable attention samples: "gather" (for CPUs and others), "tpu" (matmuls), "gpu" (one kernel, for
            # NVIDIA GPUs from Ampere on), or "auto" for the fastest on the device.
            "deformable_attention": "auto",
            # Positional encoding of the keys: "conditional" (depthwise 3x3 convolution of the features) or "sine".
            "key_positions": "conditional",
            # The deformable attention encoder over strides 32, 16, 8:
            "pixel_decoder": {
                "num_layers": 6,  # encoder layers
                "num_points": 4,  # sampling points per head and level
                "ffn_dim": 1024,  # hidden channels of a layer's feed-forward network
            },
            # The transformer decoder over the queries:
            "decoder": {
                "num_queries": 100,  # Q, number of masks predicted for each image
                "num_layers": 13,  # L; the loss trains the predictions of every layer and of the initial queries
                "ffn_dim": 2048,  # hidden channels of a layer's feed-forward network
                "mask_threshold": 0.15,  # attention is allowed where the predicted mask's probability reaches this
                "positional_queries": "dfpq",  # "dfpq" (from the last cross attention; paper, section 3.2) or "learned"
                # What the first DFPQ pools, before there is any attention: "background" (outside the predicted masks;
                # the released weights were trained with it) or "foreground" (the paper describes it).
                "first_focus": "background",
                "hrca": True,  # every fourth layer attends to stride 4; if False, all layers cycle over 32, 16, 8
                "hrca_omega": 32,  # HRCA attends to one in omega high-resolution tokens
                "hrca_selection": "window",  # "window" (released weights) or "pixel" (paper, equation 6)
            },
        }
    )

    config.loss = ConfigDict(
        {
            "class_weight": 2.0,  # of the class term, in the loss and in the matching cost
            "mask_weight": 5.0,  # of the masks' binary cross-entropy, in loss and matching cost
            "dice_weight": 5.0,  # of the masks' Dice loss, in loss and matching cost
            "no_object_weight": 0.1,  # of unmatched queries in the class cross-entropy; matched ones have 1
            # Weight of each class in the class cross-entropy, K numbers. (): from `class_balance`, else all 1.
            "class_weights": (),
            # Weigh a class by its share of the training pixels to the power of -class_balance, 1 on average; 0: not.
            "class_balance": 0.0,
            "num_points": 12544,  # P, number of points at which a mask is compared with its target
            "oversample_ratio": 3.0,  # candidates for the points of the loss, as a multiple of P
            "importance_ratio": 0.75,  # share of P that are the least certain candidates; the rest is drawn uniformly
            # One set of points for all pairs of an image and all predictions, in place of a set for each pair, which is
            # what the official program draws: less work on TPUs and GPUs (docs/performance.md).
            "shared_points": False,
        }
    )

    config.optimizer = ConfigDict(
        {
            "learning_rate": 1e-4,  # the highest: of the first step, unless there is a warm-up
            "warmup_steps": 0,  # in which the learning rate rises linearly to what the decay says; 0: none
            "poly_power": 0.9,  # the learning rate falls to 0 as (1 - step / steps) to this power
            # The backbone's learning rate, as a multiple of the others'. 0 freezes the backbone, which saves time and
            # memory: it computes as in prediction, without drop path and with constant statistics of batch norm. The
            # pyramid of a ViT is trained at the others' rate.
            "backbone_multiplier": 0.1,
            # Layer-wise rate decay: a layer of the backbone has the learning rate of the next one times this. 1: none.
            "layer_decay": 1.0,
            "weight_decay": 0.05,  # AdamW's; norms, embeddings and tables of relative positions have none
            "betas": (0.9, 0.999),  # AdamW's decay rates of the first and second moments
            "eps": 1e-8,  # AdamW's; it matters, because clipped gradients are about as small
            "clip_norm": 0.01,  # largest norm of the whole model's gradient; clipped before AdamW
        }
    )

    config.train = ConfigDict(
        {
            "steps": 160_000,  # optimizer steps, of one batch each
            "batch_size": 16,  # of all devices and hosts together
            # Halve the batch size until the step fits the devices' memory: --config.train.batch_size=auto in short. A
            # resumed run keeps the size that was found.
            "fit_batch_size": False,
            "accumulation": 1,  # number of parts in which a batch is computed, one after the other, to save memory
            "seed": 0,  # of initialization, data order, augmentation and sampled points
            # Start weights: a checkpoint directory of convert.py, with a backbone or a whole model. The class head of a
            # model with other classes is initialized again. Empty: random.
            "init": "",
            # Of an exponential moving average of the parameters, which evaluation and prediction use; 0: none. Step t
            # has at most (1 + t) / (10 + t), so that the average soon forgets the start weights.
            "ema_decay": 0.0,
            # Shard parameters and optimizer state over the devices (large models); over those of a slice if the devices
            # lie in several.
            "shard_parameters": False,
            "log_every": 20,  # steps between entries of the log
            # Services that get the numbers of the log as well: "wandb", "mlflow", each with the extra of its name.
            "trackers": (),
            "checkpoint_every": 2_000,  # steps between checkpoints
            "evaluate_every": 10_000,  # steps between evaluations: mIoU on the validation split, and a picture
            "patience": 0,  # evaluations without a better mIoU, after which the training ends; 0: it never ends early
            "evaluation_stride": 1,  # evaluate every n-th sample of the split
            "keep_checkpoints": 2,  # number of latest checkpoints to keep; the best by mIoU is kept too
            "lost_host_seconds": 60,  # without a sign of life, after which a host is lost, and all others end
            # Minutes without a step, an evaluated image or the end of another part of the work, after which the program
            # prints the stacks of its threads and ends; 0: never.
            "watchdog_minutes": 30.0,
        }
    )

    # A photo is resized to a random shorter side, then cropped, jittered and flipped at random.
    config.augmentation = ConfigDict(
        {
            "short_sides": tuple(int(512 * 0.1 * j) for j in range(5, 21)),  # in pixels; one is drawn for each sample
            "max_long_side": 2048,  # in pixels; if the longer side would exceed it, both sides shrink
            "crop": (512, 512),  # (height, width) in pixels, multiples of 32; smaller samples are padded
            "color_jitter": True,  # brightness, contrast, saturation and hue at random
            "flip": True,  # mirror half of the samples
            "vertical_flip": False,  # turn half of the samples upside down (photos from above)
            "quarter_turns": False,  # turn samples by 0, 90, 180 or 270 degrees (photos from above; square crops)
            # Share of the samples whose crop is laid on a pixel of a class that is drawn from those of the photo, each
            # with the same chance. The other crops are laid anywhere.
            "balanced_crops": 0.0,
        }
    )

    # How photos are predicted (see fasseg_jax/inference/views.py); all lengths are in pixels.
    config.inference = ConfigDict(
        {
            "mode": "single",  # "single", "multi_scale" or "sliding"
            # The photo's shorter side becomes `short_side`, unless the longer side would exceed `max_long_side`.
            "short_side": 512,
            "max_long_side": 2048,  # limit of the resized photo's longer side
            # "multi_scale" resizes the photo to the test size above, then to each of these sizes, and averages the
            # predictions; with `flip`, those of the mirror images too.
            "multi_scale": {"short_sides": (256, 384, 512, 640, 768, 896), "max_long_side": 3584, "flip": True},
            # "sliding" resizes the photo to a shorter side of `short_side` (0 keeps its size), and passes windows
            # (height, width) over it; () is the size of a training crop. Neighbors overlap by at least the share
            # `overlap` of their length.
            "sliding": {"window": (), "overlap": 1 / 3, "short_side": 0},
            # The network's inputs are padded to multiples of this. 32 is exact. With 64 or 128 fewer shapes need to be
            # compiled; the photo is continued by its mirror image, and scores differ a little.
            "round_to": 32,
        }
    )
    return config


def use_mask2former(config: ConfigDict) -> None:
    """Turn FASeg's `config` into Mask2Former, the paper's baseline, by switching off every contribution of FASeg."""
    config.model.key_positions = "sine"
    config.model.decoder.positional_queries = "learned"
    config.model.decoder.hrca = False
    config.model.decoder.num_layers = 9
    config.model.decoder.mask_threshold = 0.5
