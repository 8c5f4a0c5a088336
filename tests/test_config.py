"""Configurations: every published variant, and clear refusals."""

import pytest

from fasseg_jax.config import load_config
from fasseg_jax.models.fasseg import build_model

ADE20K = ["r50", "r101", "swin_t", "swin_s", "swin_b", "swin_l"]


@pytest.mark.parametrize("name", [*ADE20K, *(f"mask2former_{name}" for name in ADE20K)])
def test_ade20k(name):
    config = load_config(f"configs/ade20k.py:{name}")
    build_model(config.model)
    large = name.endswith(("swin_b", "swin_l"))
    side = 640 if large else 512
    assert config.augmentation.crop == (side, side)
    assert config.augmentation.short_sides[0] == side // 2 and config.augmentation.short_sides[-1] == 2 * side
    assert len(config.augmentation.short_sides) == 16
    assert config.inference.short_side == side
    assert config.train.steps == 160_000 and config.train.batch_size == 16
    baseline = name.startswith("mask2former")
    assert config.model.decoder.num_layers == (9 if baseline else 13)
    assert config.model.decoder.mask_threshold == (0.5 if baseline else 0.15)


@pytest.mark.parametrize("name", ["r50", "r101", "mask2former_r50", "mask2former_r101"])
def test_cityscapes(name):
    config = load_config(f"configs/cityscapes.py:{name}")
    build_model(config.model)
    assert config.model.num_classes == 19
    assert config.model.backbone.norm == "batch_norm"
    assert config.augmentation.crop == (512, 1024)
    assert config.train.steps == 90_000


def test_variants_do_not_share_state():
    first = load_config("configs/ade20k.py:swin_t")
    first.model.backbone.window = 3
    assert load_config("configs/ade20k.py:swin_t").model.backbone.window == 7


def test_refusals():
    with pytest.raises(ValueError, match="no variant 'r52'; choose one of r50, r101"):
        load_config("configs/ade20k.py:r52")
    with pytest.raises(FileNotFoundError, match="ade21k.py"):
        load_config("configs/ade21k.py:r50")
