"""Configurations: every published variant, and clear refusals."""

import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

from fasseg_jax.config import base_config, changed_fields, flat_fields, load_config, loading, rename_old
from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.models.fasseg import build_model
from tests.helpers import ROOT

ADE20K = [
    *("r50", "r101", "swin_t", "swin_s", "swin_b", "swin_l"),
    *("convnext_t", "convnext_s", "convnext_b", "convnext_l", "convnextv2_t", "convnextv2_b", "convnextv2_l"),
    *("dinov2_s", "dinov2r_b", "dinov3_l"),
]


@pytest.mark.parametrize("name", [*ADE20K, *(f"mask2former_{name}" for name in ADE20K)])
def test_ade20k(name):
    config = load_config(f"configs/ade20k.py:{name}")
    build_model(config.model)
    large = name.endswith(("_b", "_l")) and "dino" not in name
    side = 640 if large else 512
    assert config.augmentation.crop == (side, side)
    assert config.augmentation.short_sides[0] == side // 2 and config.augmentation.short_sides[-1] == 2 * side
    assert len(config.augmentation.short_sides) == 16
    assert config.inference.short_side == side
    assert config.train.steps == 160_000 and config.train.batch_size == 16
    rates = (config.optimizer.backbone_multiplier, config.optimizer.layer_decay)
    assert rates == ((1.0, 0.8) if "dino" in name else (0.1, 1.0))
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
    with pytest.raises(FileNotFoundError, match="'configs/ade21k.py'; .*ade20k.py, c"):
        load_config("configs/ade21k.py:r50")
    with pytest.raises(FileNotFoundError, match="no recipe 'ade21k'; there are ade20k, c"):
        load_config("ade21k:r50")


def test_recipes_of_the_package_are_found_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = flat_fields(load_config(str(ROOT / "configs/ade20k.py:swin_t")))
    for name in ("ade20k:swin_t", "ade20k.py:swin_t", "configs/ade20k.py:swin_t", "configs/ade20k:swin_t"):
        assert flat_fields(load_config(name)) == expected, name
    (tmp_path / "shapes").write_text("not a recipe")  # a file of the name hides nothing
    assert load_config("shapes").data.source == "shapes"
    own = "from fasseg_jax.config import base_config as get_config"
    (tmp_path / "shapes.py").write_text(own)  # but a recipe does
    assert load_config("shapes.py").data.source == "folder"
    (tmp_path / "mine.py").write_text(own)
    assert load_config("./mine.py").data.source == "folder"
    with pytest.raises(FileNotFoundError, match="no recipe '../setup.py'"):  # only files of configs/ are found there
        load_config("../setup.py")


# Old names

OLD = {"model.width": "model.hidden_dim", "data.source=pictures": "data.source=folder"}
RECIPE = """
from fasseg_jax.config import base_config

def get_config(width="64"):
    config = base_config()
    config.model.width = int(width)
    config.data.source = "pictures"
    return config
"""


@pytest.fixture
def old_names(monkeypatch):
    monkeypatch.setattr(loading, "RENAMED", OLD)


def test_old_recipes_load(old_names, tmp_path, capsys):
    (tmp_path / "old.py").write_text(RECIPE)
    config = load_config(f"{tmp_path}/old.py:96")
    assert config.model.hidden_dim == 96 and "width" not in config.model
    assert config.data.source == "folder"
    assert capsys.readouterr().err.splitlines() == [
        "config.model.width is now called config.model.hidden_dim",
        "config.data.source=pictures is now called config.data.source=folder",
    ]
    rename_old(config)
    rename_old(base_config())
    assert not capsys.readouterr().err


def test_old_names_on_the_command_line(old_names, monkeypatch, capsys):
    arguments = ["--config=configs/shapes.py", "--config.model.width=32", "--config.data.source=pictures"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    values = flags.FlagValues()
    config = DEFINE_config_file("config", None, "The recipe.", values)
    values(sys.argv)
    assert config.value.model.hidden_dim == 32 and config.value.data.source == "folder"
    assert capsys.readouterr().err.splitlines() == [
        "--config.model.width is now called --config.model.hidden_dim",
        "config.data.source=pictures is now called config.data.source=folder",
    ]


@pytest.mark.parametrize("new", loading.RENAMED.values())
def test_new_names_exist(new):
    field, _, _ = new.partition("=")
    assert field in flat_fields(base_config())


# Comparing


def test_changed_fields():
    before, after = base_config(), base_config()
    after.train.steps, after.data.num_threads, after.inference.sliding.window = 9, 1, [32, 32]
    assert list(changed_fields(before, after).values()) == [
        "config.inference.sliding.window was (), is (32, 32)",
        "config.train.steps was 160000, is 9",
    ]
    after.model.hidden_dim = 8
    with pytest.raises(ValueError, match="of another network: config.model.hidden_dim was 256, is 8. Use another"):
        changed_fields(before, after)


def test_lists_and_tuples_are_the_same():
    assert flat_fields(ConfigDict({"a": {"b": [1, 2]}, "c": "d"})) == {"a.b": (1, 2), "c": "d"}
