"""Semantic scores and labels of a photo, from the masks and classes of its queries (SPEC section 6).

The masks (stride 4) are resized to the network's input size, turned into probabilities and summed over the queries by
class; the scores, without the padding, are resized to the photo's size; the best class of a pixel is its label. In this
order all scores of a large photo take gigabytes. They are therefore computed in tiles: a tile of the photo takes its
few rows and columns of the network's input from the masks, with the same numbers whatever the tile. Memory does not
grow with the photo, and a compiled tile serves every photo of about the same width and scale.

Letters: Q queries, K classes, (h, w) the resized photo, (H, W) the photo; a tile is S x T pixels of the photo and takes
R rows and C columns of the resized one.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.resizing import taps

__all__ = ["View", "photo_labels", "photo_scores"]

MASK_STRIDE = 4
SOURCE_ROWS = 32  # R: enough for full use of a processor's cores, few enough for its caches
SCORE_ROWS = 32  # S, at most, where the scores themselves are asked for: they are K times larger than labels
MAX_TILE_WIDTH = 2048  # T, at most


@dataclasses.dataclass(frozen=True)
class View:
    """What the network predicts of a photo resized to one size.

    Attributes:
      size: (h, w) of the resized photo, without padding.
      class_probabilities: (Q, K) float32, the softmax over K + 1 classes without "no object".
      mask_logits: (H/4, W/4, Q) float32 for the padded input; queries last, so that each gather takes whole rows.
    """

    size: tuple[int, int]
    class_probabilities: jax.Array
    mask_logits: jax.Array


@flax.struct.dataclass
class Taps:
    """Positions along one axis: `sources` of the resized photo, and what each position of a tile interpolates.

    Attributes:
      sources: (R,) or (C,) positions in the resized photo, the last repeated to fill up.
      low, high: (S,) or (T,) indices into `sources`.
      weight: (S,) or (T,) float32, of `high`.
    """

    sources: np.ndarray
    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray


def photo_labels(view: View, size: tuple[int, int]) -> np.ndarray:
    """Class ids of a photo of `size` (H, W): (H, W), uint8, or uint16 where there are more than 255 classes."""
    dtype = np.uint8 if view.class_probabilities.shape[1] <= 255 else np.uint16
    return _assemble(_label_tile, view, size, None, np.empty(size, dtype))


def photo_scores(view: View, size: tuple[int, int]) -> np.ndarray:
    """Semantic scores of a photo of `size` (H, W): (H, W, K) float32, the sum over queries of class x mask."""
    num_classes = view.class_probabilities.shape[1]
    return _assemble(_score_tile, view, size, SCORE_ROWS, np.empty((*size, num_classes), np.float32))


def _assemble(tile: Callable, view: View, size: tuple[int, int], max_rows: int | None, out: np.ndarray) -> np.ndarray:
    """Fill `out` (H, W, ...) with the tiles that `tile` computes."""
    (height, width), (h, w) = size, view.size
    # All lengths are of a few values, whatever the photo: each combination is compiled once.
    rows = _round_down(max(SOURCE_ROWS // 2, (SOURCE_ROWS - 3) * height // h + 1))
    rows = min(rows, max_rows or rows)
    num_column_tiles = -(-width // MAX_TILE_WIDTH)
    columns = _round_up(-(-width // num_column_tiles))
    padded_width = view.mask_logits.shape[1] * MASK_STRIDE
    # A tile is at most an eighth wider than its share of the photo.
    source_columns = min(2 * columns, padded_width, -(-9 * padded_width // (8 * num_column_tiles)) + 4)
    column_tiles = _axis_tiles(w, width, columns, source_columns)
    for y, row_taps in _axis_tiles(h, height, rows, SOURCE_ROWS):
        for x, column_taps in column_tiles:
            values = np.asarray(tile(view.class_probabilities, view.mask_logits, row_taps, column_taps))
            target = out[y : y + rows, x : x + columns]
            target[:] = values[: target.shape[0], : target.shape[1]]
    return out


def _axis_tiles(source: int, target: int, length: int, num_sources: int) -> list[tuple[int, Taps]]:
    """Cut an axis of `target` positions, resized from `source`, into tiles: (first position, taps) each.

    All are `length` long; the last repeats its last position. `length` consecutive positions need at most
    min(2 * length, ceil((length - 1) * source / target) + 3) sources, one of them for rounding.
    """
    low, high, weight = taps(source, target)
    tiles = []
    for start in range(0, target, length):
        positions = np.minimum(start + np.arange(length), target - 1)
        needed, index = np.unique(np.stack([low[positions], high[positions]]), return_inverse=True)
        sources = np.pad(needed, (0, num_sources - len(needed)), mode="edge")
        index = index.reshape(2, length).astype(np.int32)
        tiles.append((start, Taps(sources, index[0], index[1], weight[positions].astype(np.float32))))
    return tiles


def _round_up(length: int) -> int:
    """The next of 8 lengths per octave: at most an eighth more."""
    step = max(1, 2 ** (length.bit_length() - 1) // 8)
    return -(-length // step) * step


def _round_down(length: int) -> int:
    step = max(1, 2 ** (length.bit_length() - 1) // 8)
    return length // step * step


@jax.jit
def _label_tile(class_probabilities: jax.Array, mask_logits: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    """Labels of a tile, (S, T), uint8 or uint16."""
    scores = _resize_columns(class_probabilities, mask_logits, rows, columns)  # (R, K, T)
    num_classes = scores.shape[1]
    class_ids = jnp.arange(num_classes, dtype=jnp.int32)[:, None]  # (K, 1)

    def label_row(row):
        row_scores = _interpolate(scores, *row, axis=0)  # (K, T)
        # Two plain reductions: on a CPU five times faster than jnp.argmax, and the first of equals, too.
        best = row_scores.max(axis=0)
        return jnp.where(row_scores == best, class_ids, num_classes).min(axis=0)

    # Row by row, (S, T): the tile's scores are never all in memory, in which the time would go.
    labels = jax.lax.map(label_row, (rows.low, rows.high, rows.weight))
    return labels.astype(jnp.uint8 if num_classes <= 255 else jnp.uint16)


@jax.jit
def _score_tile(class_probabilities: jax.Array, mask_logits: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    """Scores of a tile, (S, T, K)."""
    scores = _resize_columns(class_probabilities, mask_logits, rows, columns)  # (R, K, T)
    return _interpolate(scores, rows.low, rows.high, rows.weight, axis=0).swapaxes(1, 2)


def _resize_columns(class_probabilities: jax.Array, mask_logits: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    """Scores of the tile's source rows, resized to the tile's columns: (R, K, T)."""
    masks = _upsample(_upsample(mask_logits, rows.sources, axis=0), columns.sources, axis=1)  # (R, C, Q)
    # float32 products: TPUs otherwise round the factors to bfloat16, recent GPUs to TF32.
    scores = jnp.einsum("rcq,qk->rck", jax.nn.sigmoid(masks), class_probabilities, precision="highest")
    scores = _interpolate(scores, columns.low, columns.high, columns.weight, axis=1)  # (R, T, K)
    return scores.swapaxes(1, 2)  # (R, K, T)


def _upsample(mask_logits: jax.Array, positions: jax.Array, axis: int) -> jax.Array:
    """Resize stride-4 masks along `axis` to `positions` of the network's input: bilinear, half-pixel centres."""
    coordinate = jnp.maximum((positions + 0.5) / MASK_STRIDE - 0.5, 0)
    low = jnp.floor(coordinate).astype(jnp.int32)
    high = jnp.minimum(low + 1, mask_logits.shape[axis] - 1)
    return _interpolate(mask_logits, low, high, coordinate - low, axis)


def _interpolate(x: jax.Array, low: jax.Array, high: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
    """`x` interpolated between `low` and `high` along `axis`, which takes the shape of `low` (scalars: none)."""
    weight = weight.reshape(weight.shape + (1,) * (x.ndim - 1 - axis))
    return jnp.take(x, low, axis, mode="clip") * (1 - weight) + jnp.take(x, high, axis, mode="clip") * weight
