"""The views of a photo that the network predicts: the whole photo, several sizes of it, or windows.

`config.inference.mode` selects them (docs/specification.md, section 6):

- "single": the photo, resized to the test size.
- "multi_scale": the photo, resized to the test size and from there to several sizes, each also flipped. Scores are
  averaged.
- "sliding": overlapping windows of the size of a training crop, over the photo in its own size or in another. Scores
  are averaged over the windows that show a pixel. This mode suits photos far larger than the training crop.

Each view is padded at the bottom and right to multiples of `config.inference.round_to`. The network needs multiples of
32, and with 32 the padding is zero and the result exact. Larger multiples let more photos share a compiled program, at
a price: the network has no padding mask, so more padding changes the scores (docs/performance.md says how much). There
the mirror image continues the photo: large parts of zeros spoil the scores, which a continued photo hardly changes.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from fasseg_jax.config import SIZE_DIVISOR, base_config, check_section
from fasseg_jax.data.preprocessing import normalize, resize_photo, resized_size

__all__ = ["PhotoViews", "Placement", "Span", "ceil_div", "inference_settings"]


@dataclasses.dataclass(frozen=True)
class Span:
    """The part of one axis of a resized photo that a view shows, in pixels of the resized photo.

    Attributes:
      resized: length of the whole axis.
      start: first pixel of the part.
      length: length of the part.
      starts: first pixels of all windows of this length along the axis. A pixel that several of them show takes their
        mean.
      flipped: whether the view shows its part mirrored.
    """

    resized: int
    start: int
    length: int
    starts: tuple[int, ...]
    flipped: bool = False

    @classmethod
    def whole(cls, resized: int, flipped: bool = False) -> "Span":
        """The whole axis."""
        return cls(resized, 0, resized, (0,), flipped)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a view lies in its photo, and the weight of its scores.

    Attributes:
      rows, columns: the part that it shows along each axis.
      weight: factor of its scores. The weights of all views of a pixel sum to one, except that windows all have weight
        one and are averaged by `Span.starts`.
      padded: (height, width) of the network's input.
    """

    rows: Span
    columns: Span
    weight: float
    padded: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the view without padding."""
        return self.rows.length, self.columns.length


class PhotoViews:
    """The views of one photo.

    Attributes:
      size: (H, W) of the photo.
      placements: where each view lies, ordered from the top of the photo to its bottom.
    """

    def __init__(self, image: np.ndarray, config: ConfigDict):
        """Plan the views of a photo.

        Args:
          image: uint8 RGB, (H, W, 3).
          config: the whole configuration; its `inference` comes from `inference_settings`.

        Raises:
          ValueError: the image is not as stated.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image must be RGB, uint8 (H, W, 3), not {image.dtype} {image.shape}")
        self.size: tuple[int, int] = (image.shape[0], image.shape[1])
        self._image = image
        self._base_size, self.placements = _place(self.size, config)
        self._mirrored = config.inference.round_to > SIZE_DIVISOR

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Padded size of each view. Photos with equal shapes can share batches."""
        return tuple(placement.padded for placement in self.placements)

    @property
    def num_windows(self) -> int:
        """How many views of the photo have the same shape and so fill a batch together: 1 unless in mode "sliding"."""
        first = self.placements[0]
        return len(first.rows.starts) * len(first.columns.starts)

    def input(self, index: int) -> Float[np.ndarray, "h w 3"]:
        """The network's input for a view, normalized and padded. Several threads may call this at once."""
        placement = self.placements[index]
        rows, columns = placement.rows, placement.columns
        picture = self._base
        if picture.shape[:2] != (rows.resized, columns.resized):
            picture = resize_photo(picture, (rows.resized, columns.resized))
        picture = picture[rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
        if columns.flipped:
            picture = picture[:, ::-1]
        (height, width), (padded_height, padded_width) = placement.size, placement.padded
        added = (0, padded_height - height), (0, padded_width - width), (0, 0)
        return np.pad(normalize(picture), added, mode="symmetric" if self._mirrored else "constant")

    @functools.cached_property
    def _base(self) -> UInt8[np.ndarray, "h w 3"]:
        """The photo in the size from which views are cut or resized."""
        return self._image if self._base_size == self.size else resize_photo(self._image, self._base_size)


def inference_settings(config: ConfigDict, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """`config.inference`, checked, with defaults for fields that an older checkpoint lacks.

    Args:
      config: the whole configuration.
      changes: fields of `config.inference` to set, e.g. {"mode": "multi_scale"}.

    Raises:
      ValueError: there is no such field, or its value is not allowed; the message names it.
    """
    settings = base_config().inference.lock()
    try:
        settings.update(config.inference)
        settings.update(changes or {})
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config.inference: {str(error.args[0]).split('. Other fields')[0]}") from None
    settings.sliding.window = tuple(settings.sliding.window or config.augmentation.crop)
    check_section("inference", settings)
    return settings.unlock()


def _place(size: tuple[int, int], config: ConfigDict) -> tuple[tuple[int, int], tuple[Placement, ...]]:
    """The size from which views are cut or resized, and the place of each view, for a photo of `size` (H, W)."""
    settings = config.inference
    if settings.mode == "sliding":
        return _place_windows(size, settings)
    base = resized_size(size, settings.short_side, settings.max_long_side)
    if settings.mode == "single":
        return base, (_placement(Span.whole(base[0]), Span.whole(base[1]), 1.0, settings.round_to),)
    scales = settings.multi_scale
    sizes = [resized_size(base, short_side, scales.max_long_side) for short_side in scales.short_sides]
    flips = (False, True) if scales.flip else (False,)
    weight = 1 / (len(sizes) * len(flips))
    return base, tuple(
        _placement(Span.whole(height), Span.whole(width, flipped), weight, settings.round_to)
        for height, width in sizes
        for flipped in flips
    )


def _place_windows(size: tuple[int, int], settings: ConfigDict) -> tuple[tuple[int, int], tuple[Placement, ...]]:
    """`_place` in mode "sliding"."""
    short_side = settings.sliding.short_side
    base = resized_size(size, short_side, settings.max_long_side) if short_side else size
    rows, columns = (
        _windows(length, window, settings.sliding.overlap)
        for length, window in zip(base, settings.sliding.window, strict=True)
    )
    return base, tuple(_placement(*spans, 1.0, settings.round_to) for spans in itertools.product(rows, columns))


def _placement(rows: Span, columns: Span, weight: float, round_to: int) -> Placement:
    padded = ceil_div(rows.length, round_to) * round_to, ceil_div(columns.length, round_to) * round_to
    return Placement(rows, columns, weight, padded)


def _windows(length: int, window: int, overlap: float) -> list[Span]:
    """Evenly spread windows that cover an axis. Neighbors share at least the part `overlap` of a window."""
    window = min(window, length)
    step = max(1, window - math.ceil(window * overlap - 1e-6))  # 1e-6: the float 0.8 is a little more than 4/5
    count = ceil_div(length - window, step) + 1
    starts = tuple(int(start) for start in np.linspace(0, length - window, count).round())
    return [Span(length, start, window, starts) for start in starts]


def ceil_div(a: int, b: int) -> int:
    """The smallest integer that is at least a / b, of positive b."""
    return -(-a // b)
