"""Photos, regions and readers for the tests of imports."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fasseg_jax.importing.annotations import ImportOptions
from fasseg_jax.importing.run import ImportResult, import_annotations

HEIGHT, WIDTH = 36, 48
EXIF_ORIENTATION = 0x0112


def write_photo(path: Path, height: int = HEIGHT, width: int = WIDTH, orientation: int = 1) -> np.ndarray:
    """Write a photo of noise, and return its pixels as a viewer shows them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(map(ord, path.name)))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    image.save(path, exif=exif)
    return np.asarray(image)


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


def ragged_labels(seed: int, num_classes: int = 4, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(H, W) uint8 of regions with holes, single pixels and several parts."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(rng.integers(0, num_classes, (height // 6, width // 6), np.uint8), 6, 0), 6, 1)
    noise = rng.random((height, width)) < 0.05
    labels[noise] = rng.integers(0, num_classes, np.count_nonzero(noise))
    return labels


def run_import(source: Path, output: Path, format_name: str | None = None, **options) -> ImportResult:
    return import_annotations(source, output, format_name, ImportOptions(**options), announce=lambda line: None)


def read_labels(output: Path, name: str) -> np.ndarray:
    """The label map of a sample, in whichever split it is."""
    (path,) = output.glob(f"annotations/*/{name}.png")
    return np.asarray(Image.open(path))


def class_names(output: Path) -> list[str]:
    return [line.split(" ", 1)[1].rsplit(" ", 3)[0] for line in (output / "classes.txt").read_text().splitlines()]
