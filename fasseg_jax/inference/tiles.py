r"""The plan of a photo's tiles: which pixels of each view every tile takes, and with which weights (numpy only).

`scores.py` computes a photo's scores tile by tile. A tile is S x T pixels of the photo. All that lies between the masks
and the scores is separable, so the plan of a tile is one plan for its rows and one for its columns. Along an axis:

    masks  |   0   |   1   |   2   |   3   |   4   |     at stride 4 of the view's padded input
                    \     /    first interpolation, `from_masks`
    view   |0 1 2 3 4 5 6 7 8 9 . . . . . . . . . . |    a tile takes R (or C) of its pixels, the sources
                     \   /     second interpolation, `to_photo`
    photo  |----- tile 0 -----|----- tile 1 -----|--     S (or T) pixels per tile

The first interpolation upsamples the masks; the second resizes the scores to the photo. The weights of the second also
hold the mean over windows, and are zero for pixels that the view does not show.

Tile sizes and numbers of sources take few different values, because XLA compiles a program for each combination.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Float32, Int32

from fasseg_jax.inference.views import Placement, Span, ceil_div
from fasseg_jax.models.predictions import MASK_STRIDE
from fasseg_jax.ops.bilinear import taps

__all__ = ["AxisPlan", "Taps", "TilePlan", "plan_axis", "plan_tiles"]

SOURCE_ROWS = 32  # R, at most: enough to keep all cores of a processor busy, few enough for its caches
MAX_TILE_WIDTH = 2048  # T, at most
MIN_TILE_WIDTH = 128  # T, at least, unless the photo is narrower
TILE_BYTES = 2**25  # size of a tile's scores, at most, where they are kept


@flax.struct.dataclass
class Taps:
    """A linear interpolation along an axis: each target pixel is a weighted sum of two source pixels.

    Attributes:
      low, high: indices of the two source pixels.
      low_weight, high_weight: their weights.
    """

    low: Int32[Array | np.ndarray, "n"]
    high: Int32[Array | np.ndarray, "n"]
    low_weight: Float32[Array | np.ndarray, "n"]
    high_weight: Float32[Array | np.ndarray, "n"]


@flax.struct.dataclass
class AxisPlan:
    """What a tile takes from a view along one axis.

    Attributes:
      from_masks: from the mask pixels to the R (or C) sources, pixels of the view.
      to_photo: from the sources to the S (or T) pixels of the tile.
    """

    from_masks: Taps
    to_photo: Taps


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """The tiles of a photo, and what each takes from each view.

    Attributes:
      tile_size: (S, T).
      rows: for each view, the plan of each row of tiles; None where the view shows none of its pixels.
      columns: for each view, the plan of each column of tiles; None likewise.
      weights: factor of each view's scores.
    """

    tile_size: tuple[int, int]
    rows: tuple[tuple[AxisPlan | None, ...], ...]
    columns: tuple[tuple[AxisPlan | None, ...], ...]
    weights: tuple[np.float32, ...]

    @property
    def num_columns(self) -> int:
        """Number of columns of tiles."""
        return len(self.columns[0])

    @functools.cached_property
    def views_of_row(self) -> tuple[tuple[int, ...], ...]:
        """For each row of tiles, the views that it needs, in ascending order."""
        return tuple(
            tuple(view for view, rows in enumerate(self.rows) if rows[row] is not None)
            for row in range(len(self.rows[0]))
        )

    @functools.cached_property
    def last_row_of_view(self) -> tuple[int, ...]:
        """For each view, the last row of tiles that needs it."""
        return tuple(max(row for row, plan in enumerate(rows) if plan is not None) for rows in self.rows)


def plan_tiles(
    size: tuple[int, int], placements: Sequence[Placement], num_classes: int, keeps_scores: bool
) -> TilePlan:
    """Plan the tiles of a photo.

    Args:
      size: (H, W) of the photo.
      placements: of its views.
      num_classes: K.
      keeps_scores: whether the scores of a whole tile are in memory at a time, to add those of other views or to
        return them. If not, only those of a row of pixels are.
    """
    height, width = tile_size = _tile_size(size, placements, num_classes, keeps_scores)

    @functools.cache  # the views of a photo have few different spans
    def rows_of(span: Span, padded: int) -> tuple[AxisPlan | None, ...]:
        return plan_axis(span, padded, size[0], height, _num_source_rows(span, size[0], height))

    @functools.cache
    def columns_of(span: Span, padded: int) -> tuple[AxisPlan | None, ...]:
        return plan_axis(span, padded, size[1], width, _num_source_columns(span, size[1], width))

    return TilePlan(
        tile_size,
        rows=tuple(rows_of(placement.rows, placement.padded[0]) for placement in placements),
        columns=tuple(columns_of(placement.columns, placement.padded[1]) for placement in placements),
        weights=tuple(np.float32(placement.weight) for placement in placements),
    )


def plan_axis(span: Span, padded: int, target: int, tile_length: int, num_sources: int) -> tuple[AxisPlan | None, ...]:
    """Plan one axis for one view.

    Args:
      span: the part of the resized photo that the view shows.
      padded: length of the network's input.
      target: length of the photo's axis.
      tile_length: S or T. The last tile repeats the photo's last pixel.
      num_sources: R or C, at least as many as any tile needs.

    Returns:
      The plan of each tile; None where the view shows none of its pixels.
    """
    low, high, weight = taps(span.resized, target)
    num_windows = np.zeros(span.resized)  # that show each pixel of the resized photo
    for start in span.starts:
        num_windows[start : start + span.length] += 1
    mask_taps = taps(padded // MASK_STRIDE, padded)
    plans = []
    for first in range(0, target, tile_length):
        pixels = np.minimum(first + np.arange(tile_length), target - 1)
        ends = np.stack([low[pixels], high[pixels]])  # (2, tile_length), pixels of the resized photo
        weights = np.stack([1 - weight[pixels], weight[pixels]]) / num_windows[ends]
        plans.append(_plan_tile(span, mask_taps, ends - span.start, weights, num_sources))
    return tuple(plans)


def _plan_tile(
    span: Span, mask_taps: tuple[np.ndarray, ...], ends: np.ndarray, weights: np.ndarray, num_sources: int
) -> AxisPlan | None:
    """The plan of one tile; `ends` (2, S) are pixels of the view, or beyond it."""
    shown = (ends >= 0) & (ends < span.length)
    weights = np.where(shown, weights, 0).astype(np.float32)
    used = weights > 0
    if not used.any():
        return None
    if span.flipped:
        ends = span.length - 1 - ends
    needed, inverse = np.unique(ends[used], return_inverse=True)
    index = np.zeros(ends.shape, np.int32)
    index[used] = inverse
    sources = np.pad(needed, (0, num_sources - len(needed)), mode="edge")  # the last repeated, to fill up
    low, high, weight = (each[sources] for each in mask_taps)
    from_masks = Taps(low, high, (1 - weight).astype(np.float32), weight.astype(np.float32))
    return AxisPlan(from_masks, to_photo=Taps(*index, *weights))


def _tile_size(
    size: tuple[int, int], placements: Sequence[Placement], num_classes: int, keeps_scores: bool
) -> tuple[int, int]:
    """(S, T)."""
    height, width = size
    # So few rows that no view needs more than its R sources.
    rows = min(_round_down(max(SOURCE_ROWS // 2, (SOURCE_ROWS - 3) * height // p.rows.resized + 1)) for p in placements)
    # No wider than half a window, because a window would show only a little of a wider tile.
    max_columns = MAX_TILE_WIDTH
    for columns in (p.columns for p in placements if p.columns.length < p.columns.resized):
        max_columns = min(max_columns, max(MIN_TILE_WIDTH, columns.length * width // columns.resized // 2))
    if keeps_scores:
        pixels = TILE_BYTES // (4 * num_classes)
        rows = min(rows, max(1, _round_down(pixels // MIN_TILE_WIDTH)))
        max_columns = min(max_columns, max(MIN_TILE_WIDTH, pixels // rows))
    num_tiles = ceil_div(width, max_columns)
    return rows, _round_up(ceil_div(width, num_tiles))


def _num_source_rows(span: Span, target: int, tile_length: int) -> int:
    """R."""
    return min(SOURCE_ROWS, ceil_div(_most_sources(span, target, tile_length), 8) * 8)


def _num_source_columns(span: Span, target: int, tile_length: int) -> int:
    """C: all columns of the view, unless that is much more than a tile needs."""
    needed = _most_sources(span, target, tile_length)
    everything = min(2 * tile_length, ceil_div(span.length, 32) * 32)
    return everything if everything <= 1.25 * needed else _round_up(needed)


def _most_sources(span: Span, target: int, tile_length: int) -> int:
    """How many pixels of a view a tile can need at most."""
    # Its outermost pixels are this far apart; add one to count both ends, one for the upper neighbor, one for rounding.
    return min(2 * tile_length, ceil_div((tile_length - 1) * span.resized, target) + 3)


def _round_up(length: int) -> int:
    """The next of 8 lengths per octave, at most an eighth more than `length`."""
    step = _step(length)
    return ceil_div(length, step) * step


def _round_down(length: int) -> int:
    step = _step(length)
    return length // step * step


def _step(length: int) -> int:
    return max(1, 2 ** (length.bit_length() - 1) // 8)
