"""Which pictures of a photo the network is shown, and where each lies: the whole photo, several sizes, or windows.

`config.inference.mode` says which (SPEC section 6):

- "single": the photo, resized to the test size.
- "multi_scale": from there to several sizes, each also mirrored; scores are averaged.
- "sliding": windows of the size of a training crop, which overlap, over the photo in its own size or another; each
  position takes the mean over the windows that show it. For photos far larger than the training crop.

The picture of a view is padded at the bottom and right to multiples of `config.inference.round_to`. 32 is what the
network needs, and exact. Coarser steps let more photos share a compiled program, at a price: the network has no padding
mask, so that more padding changes scores a little, near the padding most.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import base_config
from fasseg_jax.data.preprocessing import SIZE_DIVISOR, normalize, resize_photo, resized_size

__all__ = ["MODES", "PhotoViews", "Placement", "Side", "inference_settings"]

MODES = ("single", "multi_scale", "sliding")


@dataclasses.dataclass(frozen=True)
class Side:
    """Where a view lies along one axis.

    Attributes:
      resized: length of the resized photo.
      start, length: the part of it that the view shows.
      starts: of all windows of this length along the axis; they share the positions that several of them show.
      flipped: the view shows its part mirrored.
    """

    resized: int
    start: int
    length: int
    starts: tuple[int, ...]
    flipped: bool = False

    @classmethod
    def whole(cls, resized: int, flipped: bool = False) -> "Side":
        """The view shows all of the axis."""
        return cls(resized, 0, resized, (0,), flipped)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a view lies in its photo, and what it counts for.

    Attributes:
      rows, columns: along the axes.
      share: weight of its scores; the shares of all views of a position add up to one.
      padded: (height, width) of the network's input.
    """

    rows: Side
    columns: Side
    share: float
    padded: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture, without padding."""
        return self.rows.length, self.columns.length


class PhotoViews:
    """The views of a photo: `placements`, in the order of their upper edges, and the network's `input` for each."""

    def __init__(self, image: np.ndarray, config: ConfigDict):
        """`image` is RGB, uint8 (H, W, 3); `config` a whole configuration with `inference_settings`.

        Raises:
          ValueError: the image is no such array.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image must be RGB, uint8 (H, W, 3), not {image.dtype} {image.shape}")
        self.size = image.shape[:2]
        self._image = image
        self._base_size, self.placements = _place(self.size, config)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Padded shapes of all views: photos with the same ones can share batches."""
        return tuple(placement.padded for placement in self.placements)

    @property
    def num_windows(self) -> int:
        """How many views differ in their place alone, so that they fill a batch together."""
        first = self.placements[0]
        return len(first.rows.starts) * len(first.columns.starts)

    def input(self, index: int) -> np.ndarray:
        """The network's input for a view, normalised and padded, float32 (h, w, 3); several threads may call it."""
        placement = self.placements[index]
        rows, columns = placement.rows, placement.columns
        picture = self._base
        if picture.shape[:2] != (rows.resized, columns.resized):
            picture = resize_photo(picture, (rows.resized, columns.resized))
        picture = picture[rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
        if columns.flipped:
            picture = picture[:, ::-1]
        (height, width), (padded_height, padded_width) = placement.size, placement.padded
        return np.pad(normalize(picture), ((0, padded_height - height), (0, padded_width - width), (0, 0)))

    @functools.cached_property
    def _base(self) -> np.ndarray:
        """The photo in the size that views are cut or resized from."""
        return self._image if self._base_size == self.size else resize_photo(self._image, self._base_size)


def inference_settings(config: ConfigDict, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """`config.inference` with `changes` of its fields, and defaults for what an older checkpoint does not say.

    Raises:
      ValueError: there is no such field, or its value makes no sense; the message names it.
    """
    settings = base_config().inference.lock()
    try:
        settings.update(config.inference)
        settings.update(changes or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config.inference: {str(error.args[0]).split('. Other fields')[0]}") from None
    window = tuple(settings.sliding.window or config.augmentation.crop)
    settings.sliding.window = window
    mistakes = {
        f"mode is {settings.mode!r}; choose one of {', '.join(MODES)}": settings.mode not in MODES,
        f"round_to is {settings.round_to}; it must be a multiple of {SIZE_DIVISOR}": (
            settings.round_to <= 0 or settings.round_to % SIZE_DIVISOR
        ),
        f"sliding.window is {window}; it must be a height and a width in pixels, or () for the training crop": (
            len(window) != 2 or min(window) < 1
        ),
        f"sliding.overlap is {settings.sliding.overlap}; it must be at least 0 and less than 1": (
            not 0 <= settings.sliding.overlap < 1
        ),
        "multi_scale.short_sides is empty; give some lengths": not settings.multi_scale.short_sides,
        "short_side, max_long_side and those of multi_scale must be positive": (
            min(settings.short_side, settings.max_long_side, settings.multi_scale.max_long_side) < 1
            or min(settings.multi_scale.short_sides, default=1) < 1
        ),
        "sliding.short_side must be positive, or 0 for the photo's own size": settings.sliding.short_side < 0,
    }
    for mistake, made in mistakes.items():
        if made:
            raise ValueError(f"config.inference.{mistake}")
    return settings.unlock()


def _place(size: tuple[int, int], config: ConfigDict) -> tuple[tuple[int, int], tuple[Placement, ...]]:
    """The size that views are taken from, and where each lies, for a photo of `size` (H, W)."""
    settings = config.inference
    if settings.mode == "sliding":
        short_side = settings.sliding.short_side
        base = resized_size(size, short_side, settings.max_long_side) if short_side else size
        sides = (
            _windows(length, window, settings.sliding.overlap)
            for length, window in zip(base, settings.sliding.window, strict=True)
        )
        return base, tuple(
            _placement(rows, columns, 1.0, settings.round_to) for rows, columns in itertools.product(*sides)
        )
    base = resized_size(size, settings.short_side, settings.max_long_side)
    if settings.mode == "single":
        return base, (_placement(Side.whole(base[0]), Side.whole(base[1]), 1.0, settings.round_to),)
    scales = settings.multi_scale
    flips = (False, True) if scales.flip else (False,)
    share = 1 / (len(scales.short_sides) * len(flips))
    sizes = [resized_size(base, short_side, scales.max_long_side) for short_side in scales.short_sides]
    return base, tuple(
        _placement(Side.whole(height), Side.whole(width, flipped), share, settings.round_to)
        for height, width in sizes
        for flipped in flips
    )


def _placement(rows: Side, columns: Side, share: float, round_to: int) -> Placement:
    padded = tuple(-(-side.length // round_to) * round_to for side in (rows, columns))
    return Placement(rows, columns, share, padded)


def _windows(length: int, window: int, overlap: float) -> list[Side]:
    """Windows over an axis, spread evenly; neighbours have at least the share `overlap` in common."""
    window = min(window, length)
    step = max(1, window - math.ceil(window * overlap - 1e-6))  # rounded, as 0.8 is a little more than that
    count = -(-(length - window) // step) + 1
    starts = tuple(int(start) for start in np.linspace(0, length - window, count).round())
    return [Side(length, start, window, starts) for start in starts]
