"""A folder data set small enough for tests, and configurations that read it."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.config import load_config

CLASSES = "0 sky 10 20 30\n1 street sign 40 50 60\n2 road 255 0 0\n"  # K = 3, a name with a space
SIZES = [(40, 52), (64, 48), (50, 50), (33, 70), (48, 64)]  # (height, width) of the training photos


def write_folder(root: Path) -> Path:
    """Five training photos and two to validate on, three classes, 255 ignored."""
    root.mkdir()
    (root / "classes.txt").write_text(CLASSES)
    for split, sizes in (("training", SIZES), ("validation", SIZES[:2])):
        for index, (height, width) in enumerate(sizes):
            rng = np.random.default_rng(index)
            write_image(root / f"images/{split}/{index}.jpg", rng.integers(0, 256, (height, width, 3), np.uint8))
            labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
            write_image(root / f"annotations/{split}/{index}.png", labels)
    return root


def write_image(path: Path, values: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


def folder_config(root: Path) -> ConfigDict:
    """A training from `root` with batches of four 32x64 crops."""
    config = load_config(f"configs/folder.py:{root}")
    return small_crops(config)


def shapes_config() -> ConfigDict:
    """A training from the generated shapes with batches of four 32x64 crops."""
    config = load_config("configs/ade20k.py:r50")
    config.data.update(source="shapes", dataset="shapes", reduce_zero_label=False)
    config.data.shapes.update(size=(48, 56), training=10, validation=3)
    config.model.num_classes = 6
    return small_crops(config)


def small_crops(config: ConfigDict) -> ConfigDict:
    config.augmentation.update(short_sides=(24, 40, 64), max_long_side=100, crop=(32, 64))
    config.train.update(batch_size=4, steps=20)
    return config
