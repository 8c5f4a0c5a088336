r"""ADE20K, 150 classes: the published recipe, 160k steps of batch 16.

    python train.py --config configs/ade20k.py:r50 --workdir runs/r50 \
        --config.data.root=ADEChallengeData2016 --config.train.init=BACKBONE

BACKBONE is a checkpoint that convert.py makes of an ImageNet backbone. Released weights of whole models need only
conversion:

    python convert.py --config configs/ade20k.py:r50 --weights ade_faseg_r50.pth --output DIR

Published mIoU on the validation set, single-scale / multi-scale with flip (paper, table 1; not yet measured here):

    r50     48.3 / 49.3    crop 512, 51M parameters
    swin_t  49.6 / 51.3    crop 512, 54M
    swin_b  55.0 / 56.0    crop 640, 113M, backbone from ImageNet-21k
    swin_l  56.3 / 57.7    crop 640, 222M, backbone from ImageNet-21k

r101 and swin_s follow the same recipe. `mask2former_` before any of them gives the baseline.

Nobody has trained these yet. They are starting points: the recipe above, with the drop path of ConvNeXt's own recipes
for ADE20K.

    convnext_t, convnext_s, convnextv2_t                  crop 512
    convnext_b, convnext_l, convnextv2_b, convnextv2_l    crop 640, backbone from ImageNet-22k
    dinov2_s, _b, _l; dinov2r_s, _b, _l (with registers); dinov3_s, _b, _l    crop 512

The ViTs have the rates of EoMT (Kerssies et al., 2025), whose loss, base rate, clipping, batch and crop are these too:
the backbone trains at the full rate, with a layer-wise decay of 0.8. EoMT needs 31 epochs, 40k steps, and warms up, as
--config.optimizer.warmup_steps=1000 does. Rates too high for the first steps show as a loss that rises: then try
--config.optimizer.backbone_multiplier=0.1, or 0, which freezes the backbone.
"""

from ml_collections import ConfigDict

from fasseg_jax.config import base_config, convnext, resnet, swin, use_mask2former, vit

BACKBONES = {
    "r50": resnet(50),
    "r101": resnet(101),
    "swin_t": swin("t"),
    "swin_s": swin("s"),
    "swin_b": swin("b"),
    "swin_l": swin("l"),
    "convnext_t": convnext("t"),
    "convnext_s": convnext("s"),
    "convnext_b": convnext("b"),
    "convnext_l": convnext("l"),
    "convnextv2_t": convnext("t", version=2),
    "convnextv2_b": convnext("b", version=2),
    "convnextv2_l": convnext("l", version=2),
    "dinov2_s": vit("s"),
    "dinov2_b": vit("b"),
    "dinov2_l": vit("l"),
    "dinov2r_s": vit("s", registers=True),
    "dinov2r_b": vit("b", registers=True),
    "dinov2r_l": vit("l", registers=True),
    "dinov3_s": vit("s", version=3),
    "dinov3_b": vit("b", version=3),
    "dinov3_l": vit("l", version=3),
}


def get_config(variant: str = "r50") -> ConfigDict:
    """`variant`: a name of `BACKBONES`; any of them after `mask2former_` for the baseline."""
    name = variant.removeprefix("mask2former_")
    if name not in BACKBONES:
        raise ValueError(
            f"configs/ade20k.py has no variant {variant!r}; choose one of {', '.join(BACKBONES)}, "
            "or one of these after 'mask2former_'"
        )
    config = base_config()
    config.model.backbone = BACKBONES[name].copy_and_resolve_references()
    if variant != name:
        use_mask2former(config)
    if name.endswith(("_b", "_l")) and not name.startswith("dino"):
        config.augmentation.short_sides = tuple(int(640 * 0.1 * j) for j in range(5, 21))
        config.augmentation.max_long_side = 2560
        config.augmentation.crop = (640, 640)
        config.inference.short_side = 640
        config.inference.max_long_side = 2560
    if name.startswith("dino"):
        config.optimizer.update(backbone_multiplier=1.0, layer_decay=0.8)
    if name == "swin_b":
        # The released Swin-L configuration sets no sizes and so inherits those of the base. It is unknown which of the
        # two gave its published 57.7.
        config.inference.multi_scale.short_sides = (320, 480, 640, 800, 960, 1120)
        config.inference.multi_scale.max_long_side = 4480
    return config
