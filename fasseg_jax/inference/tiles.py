"""How a photo is cut into tiles, and what each tile takes from a view."""

from collections.abc import Sequence

import flax.struct
import numpy as np

from fasseg_jax.inference.views import Placement, Side
from fasseg_jax.ops.resize import taps

SOURCE_ROWS = 32  # R, at most: enough for full use of a processor's cores, few enough for its caches
MAX_TILE_WIDTH = 2048  # T, at most
MIN_TILE_WIDTH = 128  # T, at least, where the photo is as wide
TILE_BYTES = 2**25  # of a tile's scores, where they are kept: to add those of other views, or to hand them out


@flax.struct.dataclass
class Taps:
    """Positions along one axis: `sources` of a view, and which two each position of a tile adds up.

    Attributes:
      sources: (R,) or (C,) positions in the view, the last repeated to fill up.
      low, high: (S,) or (T,) indices into `sources`.
      low_weight, high_weight: (S,) or (T,) float32; 0 where the view does not show the position.
    """

    sources: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_weight: np.ndarray
    high_weight: np.ndarray


def _tile_size(
    size: tuple[int, int], placements: Sequence[Placement], num_classes: int, keeps_scores: bool
) -> tuple[int, int]:
    """(S, T), of a few values whatever the photo: each combination is compiled once."""
    height, width = size
    # No view needs more than its R rows, and a tile is no wider than half a window, most of which would not touch it.
    rows = min(_round_down(max(SOURCE_ROWS // 2, (SOURCE_ROWS - 3) * height // p.rows.resized + 1)) for p in placements)
    max_columns = MAX_TILE_WIDTH
    for columns in (p.columns for p in placements if p.columns.length < p.columns.resized):
        max_columns = min(max_columns, max(MIN_TILE_WIDTH, columns.length * width // columns.resized // 2))
    if keeps_scores:
        pixels = TILE_BYTES // (4 * num_classes)
        rows = min(rows, max(1, _round_down(pixels // MIN_TILE_WIDTH)))
        max_columns = min(max_columns, max(MIN_TILE_WIDTH, pixels // rows))
    num_tiles = -(-width // max_columns)
    return rows, _round_up(-(-width // num_tiles))


def _axis_tiles(side: Side, target: int, length: int, num_sources: int) -> list[Taps | None]:
    """Cut an axis of the photo, `target` positions, into tiles of `length`; the last repeats its last position.

    None where the view shows nothing of a tile.
    """
    low, high, weight = taps(side.resized, target)
    num_windows = np.zeros(side.resized)  # that show each position of the resized photo
    for start in side.starts:
        num_windows[start : start + side.length] += 1
    tiles = []
    for first in range(0, target, length):
        positions = np.minimum(first + np.arange(length), target - 1)
        ends = np.stack([low[positions], high[positions]])  # (2, length)
        weights = np.stack([1 - weight[positions], weight[positions]]) / num_windows[ends]
        ends = ends - side.start
        weights[(ends < 0) | (ends >= side.length)] = 0
        used = weights > 0
        if not used.any():
            tiles.append(None)
            continue
        if side.flipped:
            ends = side.length - 1 - ends
        needed, inverse = np.unique(ends[used], return_inverse=True)
        index = np.zeros(ends.shape, np.int32)
        index[used] = inverse
        sources = np.pad(needed, (0, num_sources - len(needed)), mode="edge").astype(np.int32)
        tiles.append(Taps(sources, *index, *weights.astype(np.float32)))
    return tiles


def _round_up(length: int) -> int:
    """The next of 8 lengths per octave: at most an eighth more."""
    step = max(1, 2 ** (length.bit_length() - 1) // 8)
    return -(-length // step) * step


def _round_down(length: int) -> int:
    step = max(1, 2 ** (length.bit_length() - 1) // 8)
    return length // step * step
