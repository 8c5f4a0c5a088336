"""configs/folder.py sizes a training by its photos, and what depends on a field follows its overrides."""

import sys

import numpy as np
import pytest
from absl import flags

from fasseg_jax.config import ConfigError, check_config, load_config
from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.data.sizing import TrainingSize, training_size
from fasseg_jax.data.tfds import prepare
from fasseg_jax.models.fasseg import build_model
from tests.helpers.data_cases import CLASSES, SIZES, folder_config, write_folder, write_image


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "data")


def write_photos(root, number: int, size: tuple[int, int], largest_id: int = 2):
    root.mkdir()
    (root / "classes.txt").write_text(CLASSES)
    for name in ["validation/000", *(f"training/{index:03}" for index in range(number))]:
        write_image(root / f"images/{name}.jpg", np.zeros((*size, 3), np.uint8))
        write_image(root / f"annotations/{name}.png", np.full(size, largest_id, np.uint8))
    return root


def command_line(monkeypatch, *arguments):
    """The configuration that a program gets of its command line."""
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    values = flags.FlagValues()
    config = DEFINE_config_file("config", None, "The recipe.", values)
    values(sys.argv)
    return config.value


def test_the_size_is_the_median(root):
    heights, widths = zip(*SIZES, strict=True)
    expected = TrainingSize(5, sorted(heights)[2], sorted(widths)[2])
    config = folder_config(root)
    assert training_size(config.data) == expected
    config.data.root = str(prepare(config, root.parent / "prepared"))
    assert training_size(config.data) == expected


def test_labels_need_not_be_read_as_the_recipe_says(tmp_path):
    """They may run from 1, of which only the command line tells."""
    config = load_config(f"configs/folder.py:{write_photos(tmp_path / 'data', 3, (40, 60), largest_id=3)}")
    assert training_size(config.data) == TrainingSize(3, 40, 60)


def test_without_photos_nothing_is_sized(root, capsys):
    for path in (root / "images/training").iterdir():
        path.unlink()
    config = load_config(f"configs/folder.py:{root}")
    assert training_size(config.data) is None
    assert not capsys.readouterr().err
    check_config(config, training=True)


@pytest.mark.parametrize(
    ("photos", "size", "variant", "batch", "steps", "side", "crop"),
    [
        (40, (360, 480), "small", 8, 4000, 360, 352),
        (500, (200, 100), "tiny", 8, 6250, 100, 96),
        (3, (700, 640), "base", 16, 2000, 512, 512),
        (3, (20, 30), "tiny", 8, 4000, 20, 64),
    ],
)
def test_recipe(tmp_path, capsys, photos, size, variant, batch, steps, side, crop):
    root = write_photos(tmp_path / "a,b", photos, size)
    config = load_config(f"configs/folder.py:{root},{variant}")
    check_config(config, training=True)
    build_model(config.model)
    assert config.data.root == str(root)
    assert (config.train.batch_size, config.train.steps) == (batch, steps)
    # 100 epochs, or 32,000 samples of fewer photos
    assert config.train.steps * batch >= max(100 * photos, 32_000) > (config.train.steps - 1) * batch
    assert config.train.evaluate_every == config.train.checkpoint_every == -(-steps // 20)
    assert config.augmentation.crop == (crop, crop) and config.inference.short_side == side
    assert config.augmentation.short_sides[-1] == 2 * side
    line = capsys.readouterr().err
    assert f"{photos} training photos of about {size[1]}x{size[0]} pixels" in line and line.count("\n") == 1
    assert f"{steps:,} steps of batch {batch} ({steps * batch / photos:.0f} epochs)" in line
    strong = load_config(f"configs/folder.py:{root},{variant},strong")
    assert strong.augmentation.short_sides[0] == max(side // 10, 8)
    assert config.augmentation.short_sides[0] == max(side // 2, 8)
    assert strong.model == config.model


def test_what_depends_on_a_field_follows_its_override(tmp_path, monkeypatch):
    recipe = f"--config=configs/folder.py:{write_photos(tmp_path / 'data', 320, (64, 64))}"
    config = command_line(monkeypatch, recipe, "--config.train.batch_size=4")
    assert (config.train.steps, config.train.evaluate_every, config.optimizer.warmup_steps) == (8000, 400, 400)
    config = command_line(monkeypatch, recipe, "--config.train.steps=5000")
    assert (config.train.steps, config.train.evaluate_every, config.train.checkpoint_every) == (5000, 250, 250)
    config = command_line(monkeypatch, recipe, "--config.train.steps=5000", "--config.train.evaluate_every=100")
    assert (config.train.steps, config.train.evaluate_every, config.train.checkpoint_every) == (5000, 100, 250)
    config = command_line(monkeypatch, recipe, "--config.train.steps=1")
    assert (config.train.evaluate_every, config.optimizer.warmup_steps) == (1, 0)


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("batch_size", -3), ("steps", 0), ("steps", -5)])
def test_a_wrong_override_is_named(tmp_path, monkeypatch, field, value):
    recipe = f"--config=configs/folder.py:{write_photos(tmp_path / 'data', 3, (64, 64))}"
    with pytest.raises(ConfigError, match=f"config.train.{field} is {value}; it must be an integer from 1"):
        command_line(monkeypatch, recipe, f"--config.train.{field}={value}")


def test_auto_is_written_out(tmp_path, monkeypatch):
    recipe = f"--config=configs/folder.py:{write_photos(tmp_path / 'data', 3, (64, 64))}"
    config = command_line(monkeypatch, recipe, "--config.train.batch_size=auto")
    assert config.train.fit_batch_size and config.train.batch_size == 16
    config.train.batch_size = 2  # what training finds
    assert config.train.steps == 16_000


def test_many_classes_have_a_query_each(tmp_path):
    root = write_photos(tmp_path / "data", 3, (64, 64))
    (root / "classes.txt").write_text("".join(f"{index} name{index} 1 2 3\n" for index in range(60)))
    for variant, queries in (("base", 100), ("small", 40), ("tiny", 40)):
        config = load_config(f"configs/folder.py:{root},{variant}")
        check_config(config, training=True)
        assert config.model.decoder.num_queries == queries


@pytest.mark.parametrize("words", [",smal", ",small,tiny", ",small,small", ",strong,weak", ","])
def test_a_wrong_variant_is_named(root, words):
    with pytest.raises(ValueError, match=f"there is no folder '{root}{words}'; after .*:{root}, write one of ,base, "):
        load_config(f"configs/folder.py:{root}{words}")
