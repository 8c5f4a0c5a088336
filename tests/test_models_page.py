"""docs/choosing.md: tables of models."""

import importlib.util
import json

import pytest

from fasseg_jax.config import load_config
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def page():
    """The module that makes the tables."""
    spec = importlib.util.spec_from_file_location("docs_models", ROOT / "docs" / "hooks" / "models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_show_what_was_measured(page, tmp_path, monkeypatch):
    """Times in ms or s, memory in GB, the smallest model first, and a dash where nothing was measured."""
    small = {"parameters": 51_400_000, "multiply_adds": 70_600_000_000, "programs": {}}
    small["programs"] = {
        "forward_1": {"median_s": 0.01234, "peak_mb": 500},
        "forward_8": {"median_s": 0.04, "peak_mb": 900},
        "train_8": {"median_s": 0.2504, "peak_mb": 10240},
    }
    frozen = {"median_s": 0.15, "peak_mb": 5120}
    large = {"parameters": 320e6, "multiply_adds": 300e9}
    large["programs"] = {"train_8": small["programs"]["train_8"], "frozen_8": frozen}
    large["programs"]["forward_1"] = {"median_s": 8.9864, "peak_mb": 3831}
    figures = {"side": 512, "models": {"ade20k:dinov3_l": large, "ade20k:r50": small}}
    figures["machine"] = {"device": "one NVIDIA X", "jax": "1.2", "dtype": "bfloat16"}
    (tmp_path / "models.json").write_text(json.dumps(figures))
    (tmp_path / "published.json").write_bytes((ROOT / "scripts" / "published.json").read_bytes())
    monkeypatch.setattr(page, "SCRIPTS", tmp_path)
    shown = page.on_page_markdown(
        "<!-- models: measured -->\n<!-- models -->\n\n<!-- models: frozen -->\n"
    ).splitlines()
    assert (
        "of one image of 512x512. Times and memory are of the same size on one NVIDIA X with jax 1.2 in bfloat16"
        in shown[0]
    )
    assert shown[1:] == [
        "| Recipe | Parameters | Multiply-adds | One image | Images a second | Training step | Published mIoU |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `r50` | 51M | 71 G | 12.3 ms, 0.5 GB | 200 | 250 ms, 10.0 GB | 48.3 / 49.3 (FASeg, table 1) |",
        "| `dinov3_l` | 320M | 300 G | 8.99 s, 3.7 GB | – | 250 ms, 10.0 GB | none |",
        "",
        "| Recipe | Step, trained | frozen | Memory, trained | frozen  |",
        "| --- | --- | --- | --- | --- |",
        "| `dinov3_l` | 250 ms | 150 ms | 10.0 GB | 5.0 GB |",
    ]


def test_without_times_their_columns_are_left_out(page, tmp_path, monkeypatch):
    model = {"parameters": 51_400_000, "multiply_adds": 70_600_000_000, "programs": {}}
    (tmp_path / "models.json").write_text(json.dumps({"side": 512, "models": {"ade20k:dinov3_s": model}}))
    (tmp_path / "published.json").write_text("{}")
    monkeypatch.setattr(page, "SCRIPTS", tmp_path)
    assert page.all_models().splitlines() == [
        "| Recipe | Parameters | Multiply-adds | Published mIoU |",
        "| --- | --- | --- | --- |",
        "| `dinov3_s` | 51M | 71 G | none |",
    ]
    assert "Nobody has measured times" in page.measured() and "Nobody has measured" in page.frozen_backbones()


def test_every_recipe_of_the_tables_exists(page):
    measured = json.loads((ROOT / "scripts" / "models.json").read_text("utf-8"))["models"]
    published = json.loads((ROOT / "scripts" / "published.json").read_text("utf-8"))
    for recipe in {*measured, *published}:
        name, _, variant = recipe.partition(":")
        load_config(f"{ROOT}/configs/{name}.py:{variant}")  # raises a `ValueError` for an unknown variant
    shown = page.all_models()
    assert all(f"| `{recipe.partition(':')[2]}` |" in shown for recipe in measured)
