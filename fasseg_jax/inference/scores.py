"""Semantic scores and labels of a photo, from the masks and classes of its queries (SPEC section 6).

The masks (stride 4) are resized to the network's input size, turned into probabilities and summed over the queries by
class; the scores, without the padding, are resized to the photo's size, and those of all views averaged; the best class
of a pixel is its label. In this order all scores of a large photo take gigabytes. They are therefore computed in tiles:
a tile of the photo takes the few rows and columns of each view that it needs from the masks, with the same numbers
whatever the tile. Memory does not grow with the photo, and a compiled tile serves every photo of about the same width
and scale.

All of it but the sigmoid is linear and separable: along one axis a tile takes, of each view, at most two positions for
each of its own, and their weights hold the interpolation, the share of the view, and the mean over windows.

Letters: Q queries, K classes, (h, w) the resized photo, (H, W) the photo; a tile is S x T pixels of the photo and takes
R rows and C columns of a view.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.inference.tiles import (
    SOURCE_ROWS,
    Taps,
    _axis_tiles,
    _round_up,
    _tile_size,
)
from fasseg_jax.inference.views import Placement, Side

__all__ = ["Canvas", "View"]

MASK_STRIDE = 4
TILES_AHEAD = 4  # computed while the host waits for an earlier one


@dataclasses.dataclass(frozen=True)
class View:
    """What the network predicts for one view of a photo.

    Attributes:
      class_probabilities: (Q, K) float32, the softmax over K + 1 classes without "no object".
      mask_logits: (H/4, W/4, Q) float32 for the padded input; queries last, so that each gather takes whole rows.
    """

    class_probabilities: jax.Array
    mask_logits: jax.Array


class Canvas:
    """Labels or scores of one photo, which come into being as its views arrive.

    Views are added in the order of their placements. A row of tiles is computed as soon as all views that it needs are
    there; a view that no further row needs is let go. With sliding windows, whose order is from above, about two rows
    of windows are thus in memory at a time. The tiles are computed on the device of the first view.
    """

    def __init__(self, size: tuple[int, int], placements: Sequence[Placement], num_classes: int, scores: bool = False):
        """`size` is that of the photo, (H, W). `scores` asks for (H, W, K) float32 instead of labels (H, W)."""
        self._scores = scores
        if scores:
            self._result = np.empty((*size, num_classes), np.float32)
        else:
            self._result = np.empty(size, label_dtype(num_classes))
        self._tile_size = _tile_size(size, placements, num_classes, keeps_scores=scores or len(placements) > 1)
        sides = {(side, axis): None for p in placements for axis, side in enumerate((p.rows, p.columns))}
        tiles = {
            (side, axis): _axis_tiles(side, size[axis], self._tile_size[axis], self._num_sources(side, size, axis))
            for side, axis in sides
        }
        self._rows = [tiles[placement.rows, 0] for placement in placements]  # Taps or None, by view and row of tiles
        self._columns = [tiles[placement.columns, 1] for placement in placements]
        self._shares = [np.float32(placement.share) for placement in placements]
        num_rows = len(self._rows[0])
        # The views of each row of tiles, and the row of tiles that needs each view last.
        self._views_of = [[v for v, rows in enumerate(self._rows) if rows[row]] for row in range(num_rows)]
        self._last_row = [max(row for row in range(num_rows) if rows[row]) for rows in self._rows]
        self._views: dict[int, View] = {}
        self._num_added = 0
        self._next_row = 0
        self._device = None
        self._computing = collections.deque()  # (tile, y, x)

    def add(self, view: View) -> None:
        """Take the next view, and start what can be computed with it."""
        arrays = view.class_probabilities, view.mask_logits
        if self._device is None:
            self._device = next(iter(jnp.asarray(view.mask_logits).devices()))
        self._views[self._num_added] = View(*jax.device_put(arrays, self._device))
        self._num_added += 1
        while self._next_row < len(self._views_of) and self._views_of[self._next_row][-1] < self._num_added:
            self._compute(self._next_row)
            self._next_row += 1
            self._views = {v: view for v, view in self._views.items() if self._last_row[v] >= self._next_row}

    def finish(self) -> np.ndarray:
        """The result; all views have been added."""
        assert self._next_row == len(self._views_of), "views are missing"
        self._collect(0)
        return self._result

    def _num_sources(self, side: Side, size: tuple[int, int], axis: int) -> int:
        """R or C: how many positions of a view a tile takes along an axis, a bound that is the same for many photos."""
        length = self._tile_size[axis]
        # Consecutive positions need at most this many: one more than the distance of the outermost two, one for the
        # upper neighbour, one for rounding.
        needed = min(2 * length, -(-(length - 1) * side.resized // size[axis]) + 3)
        if axis == 0:
            return min(SOURCE_ROWS, -(-needed // 8) * 8)
        most = min(2 * length, -(-side.length // 32) * 32)
        return most if most <= 1.25 * needed else _round_up(needed)

    def _compute(self, row: int) -> None:
        """Start the tiles of a row."""
        height, width = self._tile_size
        one_by_one = self._device.platform == "cpu"
        for column in range(len(self._columns[0])):
            views = [v for v in self._views_of[row] if self._columns[v][column]]
            tile = None
            for v in views:
                view, is_last = self._views[v], v == views[-1]
                arguments = (
                    tile,
                    view.class_probabilities,
                    view.mask_logits,
                    self._shares[v],
                    self._rows[v][row],
                    self._columns[v][column],
                )
                tile = _add_tile(*arguments) if self._scores or not is_last else _label_tile(*arguments, one_by_one)
            self._computing.append((tile, row * height, column * width))
            self._collect(TILES_AHEAD)

    def _collect(self, keep: int) -> None:
        """Wait for tiles until only `keep` are being computed."""
        height, width = self._tile_size
        while len(self._computing) > keep:
            tile, y, x = self._computing.popleft()
            target = self._result[y : y + height, x : x + width]
            values = np.asarray(tile)
            if self._scores:
                values = values.swapaxes(1, 2)  # (S, K, T) -> (S, T, K)
            target[:] = values[: target.shape[0], : target.shape[1]]


def label_dtype(num_classes: int) -> type:
    """The smallest type of class ids that leaves one for "ignored"."""
    return np.uint8 if num_classes <= 255 else np.uint16


@functools.partial(jax.jit, static_argnames="one_by_one")
def _label_tile(
    total: jax.Array | None,
    class_probabilities: jax.Array,
    mask_logits: jax.Array,
    share: jax.Array,
    rows: Taps,
    columns: Taps,
    one_by_one: bool,
) -> jax.Array:
    """Labels of a tile, (S, T), uint8 or uint16, from the last view's scores and the `total` of the others before."""
    scores = _resize_columns(class_probabilities * share, mask_logits, rows, columns)  # (R, K, T)
    num_classes = scores.shape[1]
    class_ids = jnp.arange(num_classes, dtype=jnp.int32)[:, None]  # (K, 1)

    def label_row(row):
        positions, others = row
        row_scores = _interpolate(scores, *positions, axis=0)  # (K, T)
        if others is not None:
            row_scores += others
        # Two plain reductions: on a CPU five times faster than jnp.argmax, and the first of equals, too.
        best = row_scores.max(axis=0)
        return jnp.where(row_scores == best, class_ids, num_classes).min(axis=0)

    inputs = (rows.low, rows.high, rows.low_weight, rows.high_weight), total
    # (S, T). On a CPU row by row: the tile's scores are then never all in memory, in which the time would go (a third
    # of the time of all rows at once). Other devices would rather not have many small steps.
    labels = jax.lax.map(label_row, inputs) if one_by_one else jax.vmap(label_row)(inputs)
    return labels.astype(label_dtype(num_classes))


@functools.partial(jax.jit, donate_argnames="total")
def _add_tile(
    total: jax.Array | None,
    class_probabilities: jax.Array,
    mask_logits: jax.Array,
    share: jax.Array,
    rows: Taps,
    columns: Taps,
) -> jax.Array:
    """Scores of a tile, (S, K, T), those of one view more than `total`, which is given up."""
    scores = _resize_columns(class_probabilities * share, mask_logits, rows, columns)  # (R, K, T)
    scores = _interpolate(scores, rows.low, rows.high, rows.low_weight, rows.high_weight, axis=0)
    return scores if total is None else total + scores


def _resize_columns(class_probabilities: jax.Array, mask_logits: jax.Array, rows: Taps, columns: Taps) -> jax.Array:
    """Scores of the tile's source rows, resized to the tile's columns: (R, K, T)."""
    masks = _upsample(_upsample(mask_logits, rows.sources, axis=0), columns.sources, axis=1)  # (R, C, Q)
    # float32 products: TPUs otherwise round the factors to bfloat16, recent GPUs to TF32.
    scores = jnp.einsum("rcq,qk->rck", jax.nn.sigmoid(masks), class_probabilities, precision="highest")
    scores = _interpolate(scores, columns.low, columns.high, columns.low_weight, columns.high_weight, axis=1)
    return scores.swapaxes(1, 2)  # (R, T, K) -> (R, K, T)


def _upsample(mask_logits: jax.Array, positions: jax.Array, axis: int) -> jax.Array:
    """Resize stride-4 masks along `axis` to `positions` of the network's input: bilinear, half-pixel centres."""
    coordinate = jnp.maximum((positions + 0.5) / MASK_STRIDE - 0.5, 0)
    low = jnp.floor(coordinate).astype(jnp.int32)
    high = jnp.minimum(low + 1, mask_logits.shape[axis] - 1)
    weight = coordinate - low
    return _interpolate(mask_logits, low, high, 1 - weight, weight, axis)


def _interpolate(
    x: jax.Array, low: jax.Array, high: jax.Array, low_weight: jax.Array, high_weight: jax.Array, axis: int
) -> jax.Array:
    """The weighted sum of `x` at `low` and at `high` along `axis`, which takes the shape of `low` (scalars: none)."""
    shape = low.shape + (1,) * (x.ndim - 1 - axis)
    low_weight, high_weight = low_weight.reshape(shape), high_weight.reshape(shape)  # broadcast over the axes behind
    return jnp.take(x, low, axis, mode="clip") * low_weight + jnp.take(x, high, axis, mode="clip") * high_weight
