r"""Cityscapes, 19 classes: the published recipe, 90k steps of batch 16.

    python train.py --config configs/cityscapes.py:r50 --workdir runs/r50 \
        --config.data.root=FOLDER --config.train.init=BACKBONE

FOLDER holds leftImg8bit/ and gtFine/. BACKBONE is a checkpoint that convert.py makes of an ImageNet backbone. Released
weights of whole models need only conversion:

    python convert.py --config configs/cityscapes.py:r50 --weights cityscapes_faseg_r50.pth --output DIR

Published mIoU on the validation set, single-scale (paper, table 2; not yet measured here): r50 80.5, at 1024x2048.
`mask2former_r50` and `mask2former_r101` give the baseline.
"""

from ml_collections import ConfigDict

from fasseg_jax.config import base_config, resnet, use_mask2former

BACKBONES = {"r50": resnet(50, norm="batch_norm"), "r101": resnet(101, norm="batch_norm")}


def get_config(variant: str = "r50") -> ConfigDict:
    """`variant`: r50 or r101; `mask2former_r50` or `mask2former_r101` for the baseline."""
    name = variant.removeprefix("mask2former_")
    if name not in BACKBONES:
        raise ValueError(
            f"configs/cityscapes.py has no variant {variant!r}; choose one of {', '.join(BACKBONES)}, "
            "or one of these after 'mask2former_'"
        )
    config = base_config()
    config.data.source = "cityscapes"
    config.data.dataset = "cityscapes"
    config.data.max_targets = 19
    config.data.reduce_zero_label = False
    config.model.num_classes = 19
    config.model.backbone = BACKBONES[name].copy_and_resolve_references()
    if variant != name:
        use_mask2former(config)
    config.train.steps = 90_000
    config.augmentation.short_sides = tuple(int(1024 * 0.1 * j) for j in range(5, 21))
    config.augmentation.max_long_side = 4096
    config.augmentation.crop = (512, 1024)
    config.inference.short_side = 1024
    config.inference.max_long_side = 2048
    config.inference.multi_scale.short_sides = (512, 768, 1024, 1280, 1536, 1792)
    config.inference.multi_scale.max_long_side = 4096
    return config
