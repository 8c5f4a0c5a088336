"""A generated data set: textured shapes on a textured background. It needs no files.

Each class has its own outline, texture and range of hues. The ranges of neighbors overlap, so that color does not
suffice to tell classes apart. Shapes hide each other, the image's border cuts them, and they are shaded and noisy. Two
pixels along every visible outline are ignored, as in data sets whose annotators leave them out.
"""

import colorsys

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, DataError, load_classes
from fasseg_jax.data.labels import check_ignore_label, label_dtype
from fasseg_jax.data.samples import SPLITS, Sample

__all__ = ["ShapesSource", "open_shapes", "signed_distance"]

HUES = {"disc": 0.0, "square": 0.13, "triangle": 0.33, "ring": 0.56, "cross": 0.78}  # centers, in turns
HUE_RANGE = 0.13  # either way, in turns


class ShapesSource:
    """Generated samples; see `Source`."""

    def __init__(self, split: str, length: int, size: tuple[int, int], classes: ClassTable, ignore_label: int):
        """Make a source of `length` samples of `size` (height, width) pixels; `classes` is the table "shapes"."""
        self.classes = classes
        self.file_ids = np.arange(len(classes))
        self.problems: tuple[str, ...] = ()
        self.fingerprint = ""  # the fields of the configuration decide everything
        self._split = split
        self._length = length
        self._size = size
        self._ignore_label = ignore_label

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._length:
            raise IndexError(f"sample {index} of {self._length}")
        rng = np.random.default_rng([SPLITS.index(self._split), index])
        image, labels = draw_scene(rng, self._size, self.classes.names, self._ignore_label)
        return Sample(image, labels, f"shapes/{self._split}/{index:05d}")

    def version(self, index: int) -> str:
        """Everything that determines the sample."""
        height, width = self._size
        return f"shapes/{self._split}/{index:05d} {width}x{height}"


def open_shapes(data: ConfigDict, split: str, classes: ClassTable) -> ShapesSource:
    """Make a split as `data.shapes` describes it; a `DataError` if `classes` or `ignore_label` do not fit."""
    if classes.names != load_classes("shapes").names:
        raise DataError('the source "shapes" needs config.data.dataset = "shapes"')
    check_ignore_label(len(classes), data.ignore_label)
    return ShapesSource(split, data.shapes[split], data.shapes.size, classes, data.ignore_label)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], names: tuple[str, ...], ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a background and 3 to 8 shapes, each on top of the earlier ones.

    Returns:
      uint8 RGB (H, W, 3) and uint8 labels (H, W).
    """
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = _background(rng, y, x)
    labels = np.zeros(size, np.int32)
    for _ in range(rng.integers(3, 8, endpoint=True)):
        name = names[rng.integers(1, len(names))]
        radius = min(size) * rng.uniform(0.1, 0.28)
        angle = rng.uniform(0, 2 * np.pi)
        dy = y - rng.uniform(0, height)
        dx = x - rng.uniform(0, width)
        u = np.cos(angle) * dx + np.sin(angle) * dy
        v = np.cos(angle) * dy - np.sin(angle) * dx
        distance = signed_distance(name, u, v, radius)
        paint = _paint(rng, name, u, v, radius)
        opacity = np.clip(0.5 - distance, 0, 1)[..., None]
        image += opacity * (paint - image)
        labels[distance < 0] = names.index(name)
        labels[np.abs(distance) < 1] = ignore_label
    image *= 1 + 0.15 * np.sin(_wave(rng, y, x, 1.5 * min(size)))[..., None]  # uneven lighting
    image += rng.normal(0, 6, size)[..., None]
    return np.clip(image, 0, 255).astype(np.uint8), labels.astype(label_dtype(ignore_label))


def signed_distance(name: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Distance from a shape's outline in pixels, negative inside; near corners it may be too small.

    Args:
      name: the class.
      u: position along the shape's own horizontal axis, from its center, in pixels.
      v: the same along its vertical axis.
      radius: about that of the circle around the shape, in pixels.
    """
    match name:
        case "disc":
            return np.hypot(u, v) - 0.9 * radius
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.75 * radius
        case "triangle":
            return np.maximum(v, np.sqrt(0.75) * np.abs(u) - 0.5 * v) - 0.5 * radius
        case "ring":
            return np.abs(np.hypot(u, v) - 0.75 * radius) - 0.25 * radius
        case "cross":
            long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
            return np.maximum(long - radius, short - 0.33 * radius)
    raise ValueError(f"no shape is called {name!r}")


def _paint(rng: np.random.Generator, name: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Color of a shape at each pixel, (H, W, 3): its texture, between a dark and a light tone of one hue."""
    hue = HUES[name] + rng.uniform(-HUE_RANGE, HUE_RANGE)
    dark, light = (_rgb(hue, rng.uniform(0.45, 0.95), value) for value in (rng.uniform(70, 140), rng.uniform(150, 250)))
    period = radius * rng.uniform(0.25, 0.45)
    p = 2 * np.pi * u / period
    q = 2 * np.pi * v / period
    match name:
        case "disc":  # stripes
            texture = np.sin(p)
        case "square":  # a checkerboard
            texture = np.sin(p) * np.sin(q) * 2
        case "triangle":  # dots
            texture = np.cos(p) + np.cos(q) - 0.7
        case "ring":  # a gradient
            texture = v / radius
        case "cross":  # a grid of thin lines
            texture = 1 - 5 * np.minimum(np.abs(np.sin(p / 2)), np.abs(np.sin(q / 2)))
    mix = np.clip(0.5 + 0.8 * texture, 0, 1)[..., None]
    return dark + mix * (light - dark)


def _background(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A gradient between two pale colors of any hue, under wavy bands, (H, W, 3)."""
    first, second = (_rgb(rng.uniform(), rng.uniform(0, 0.45), rng.uniform(60, 230)) for _ in range(2))
    size = min(x.shape)
    bend = np.sin(_wave(rng, y, x, 0.6 * size))
    mix = 0.5 + 0.5 * np.sin(_wave(rng, y, x, 2 * size))
    bands = 18 * np.sin(_wave(rng, y, x, rng.uniform(0.06, 0.3) * size) + 2 * bend)
    return first + mix[..., None] * (second - first) + bands[..., None]


def _wave(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, period: float) -> np.ndarray:
    """Phase of a plane wave of random direction; `period` in pixels."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    return (np.cos(angle) * x + np.sin(angle) * y) * np.float32(2 * np.pi / period) + np.float32(phase)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Color of a hue in turns, a saturation 0 to 1 and a value 0 to 255, as float32 (3,)."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)
