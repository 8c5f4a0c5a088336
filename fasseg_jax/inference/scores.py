"""Scores and labels of a photo, from the masks and classes of its queries (docs/specification.md, section 6).

For each view, and summed over the views:

    mask logits (h/4, w/4, Q)   at stride 4 of the view's padded input
         |  upsample
    masks (h, w, Q)             sigmoid
         |  matmul with the class probabilities (Q, K)
    scores (h, w, K)            without the padding
         |  resize
    scores (H, W, K)            of the photo; the class with the largest score is a pixel's label

In this order the scores of a large photo take gigabytes. So a `Canvas` computes tiles of S x T pixels of the photo. A
tile takes R rows and C columns of each view, just those that it needs, and gets the same numbers whatever the tiles:

    mask logits (h/4, w/4, Q) -> (R, w/4, Q) -> (R, C, Q)   `AxisPlan.from_masks` of the rows, then of the columns
    scores      (R, C, K) -> (R, T, K) -> (S, T, K)         `AxisPlan.to_photo` of the columns, then of the rows

Memory does not grow with the photo, and photos of about the same size share compiled programs. `tiles.py` plans the
tiles; this module computes them.

The uncertainty of a pixel is 1 - the sum of p², where p are the classes' shares of the sum of its scores: the chance
that two classes differ if both are drawn by these shares (Gini impurity). That of a photo is the mean over its pixels.
Tiles give its sums with the labels, while the scores are in memory.
"""

import collections
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt

from fasseg_jax.data.labels import label_dtype
from fasseg_jax.inference.tiles import AxisPlan, Taps, plan_tiles
from fasseg_jax.inference.views import Placement
from fasseg_jax.ops.selection import first_argmax

__all__ = ["Canvas", "ViewPrediction"]

TILES_AHEAD = 4  # tiles that the device computes while the host waits for an earlier one


@flax.struct.dataclass
class ViewPrediction:
    """What the network predicts for one view of a photo, or for a batch of views.

    Attributes:
      class_probabilities: softmax over the K + 1 classes, without "no object".
      mask_logits: for the view's padded input, at stride 4. Queries come last, so that a gather takes whole rows.
    """

    class_probabilities: Float32[Array | np.ndarray, "*B Q K"]
    mask_logits: Float32[Array | np.ndarray, "*B h w Q"]


class Canvas:
    """The labels or scores of one photo, computed as the predictions of its views arrive.

    Views are added in the order of their placements. The canvas computes a row of tiles as soon as it has all views
    that the row needs, and drops a view that no further row needs. In mode "sliding" windows come from the top of the
    photo to its bottom, so about two rows of windows are in memory at a time. The device of the first view computes all
    tiles.
    """

    def __init__(
        self,
        size: tuple[int, int],
        placements: Sequence[Placement],
        num_classes: int,
        scores: bool = False,
        uncertainty: bool = False,
    ):
        """Plan the tiles.

        Args:
          size: (H, W) of the photo.
          placements: of all views.
          num_classes: K.
          scores: compute scores, (H, W, K) float32, instead of labels, (H, W).
          uncertainty: with labels, also compute the photo's uncertainty.
        """
        self._scores = scores
        self._measures_uncertainty = uncertainty and not scores
        self._uncertainty = 0.0  # the sum over the pixels so far
        self._plan = plan_tiles(size, placements, num_classes, keeps_scores=scores or len(placements) > 1)
        self._result = (
            np.empty((*size, num_classes), np.float32) if scores else np.empty(size, label_dtype(num_classes))
        )
        self._views: dict[int, ViewPrediction] = {}
        self._num_added = 0
        self._next_row = 0
        self._device: jax.Device | None = None
        self._computing: collections.deque[tuple[_Tile, int, int]] = collections.deque()  # tile, y, x

    def add(self, view: ViewPrediction) -> None:
        """Take the prediction of the next view, and start to compute the tiles that only lacked this one."""
        if self._device is None:
            self._device = next(iter(jnp.asarray(view.mask_logits).devices()))
        self._views[self._num_added] = jax.device_put(view, self._device)
        self._num_added += 1
        views_of_row = self._plan.views_of_row
        while self._next_row < len(views_of_row) and views_of_row[self._next_row][-1] < self._num_added:
            self._compute_row(self._next_row)
            self._next_row += 1
            for index in list(self._views):
                if self._plan.last_row_of_view[index] < self._next_row:
                    del self._views[index]

    def finish(self) -> np.ndarray:
        """The labels or scores, once all views have been added."""
        assert self._next_row == len(self._plan.views_of_row), "views are missing"
        self._collect(0)
        return self._result

    @property
    def uncertainty(self) -> float | None:
        """The photo's uncertainty, from 0 to 1, once it is finished; None if it was not asked for."""
        return self._uncertainty / self._result.size if self._measures_uncertainty else None

    def _compute_row(self, row: int) -> None:
        """Start to compute the tiles of a row."""
        height, width = self._plan.tile_size
        for column in range(self._plan.num_columns):
            self._computing.append((self._start_tile(row, column), row * height, column * width))
            self._collect(TILES_AHEAD)

    def _start_tile(self, row: int, column: int) -> "_Tile":
        """Start to compute a tile: add up the scores of its views, and take the labels with the last one."""
        assert self._device is not None
        row_by_row = self._device.platform == "cpu"
        indices = [index for index in self._plan.views_of_row[row] if self._plan.columns[index][column] is not None]
        total = None
        for index in indices:
            view, weight = self._views[index], self._plan.weights[index]
            plans = self._plan.rows[index][row], self._plan.columns[index][column]
            arguments = total, view.class_probabilities, view.mask_logits, weight, *plans
            if not self._scores and index == indices[-1]:
                return _label_tile(*arguments, row_by_row, self._inside(column) if self._measures_uncertainty else None)
            total = _add_tile(*arguments)
        assert total is not None, "every pixel lies in a view"
        return total, None

    def _inside(self, column: int) -> np.ndarray:
        """Which columns of a tile lie in the photo, (T,) float32 of 0 and 1."""
        width = self._plan.tile_size[1]
        return (column * width + np.arange(width) < self._result.shape[1]).astype(np.float32)

    def _collect(self, remaining: int) -> None:
        """Wait for tiles until only `remaining` are being computed."""
        height, width = self._plan.tile_size
        while len(self._computing) > remaining:
            (tile, uncertainty), y, x = self._computing.popleft()
            values = np.asarray(tile)
            if self._scores:
                values = values.swapaxes(1, 2)  # (S, K, T) -> (S, T, K)
            target = self._result[y : y + height, x : x + width]
            target[:] = values[: target.shape[0], : target.shape[1]]
            if uncertainty is not None:
                self._uncertainty += float(np.asarray(uncertainty, np.float64)[: target.shape[0]].sum())


_Tile = tuple[Array, Array | None]  # its labels or scores, and the sum of each row's uncertainties (S,)


@functools.partial(jax.jit, static_argnames="row_by_row")
def _label_tile(
    total: Float32[Array, "S K T"] | None,
    class_probabilities: Float[Array | np.ndarray, "Q K"],
    mask_logits: Float[Array | np.ndarray, "h w Q"],
    weight: Float32[Array | np.ndarray | np.float32, ""],
    rows: AxisPlan,
    columns: AxisPlan,
    row_by_row: bool,
    inside: Float32[Array | np.ndarray, "T"] | None = None,
) -> tuple[UInt[Array, "S T"], Float32[Array, "S"] | None]:
    """Labels of a tile, from the prediction of its last view and the `total` of the scores of the views before.

    If `inside` is given, also the sum of the uncertainties of each row's pixels, weighted by it.
    """
    scores = _resize_columns(class_probabilities * weight, mask_logits, rows, columns)  # (R, K, T)

    def label_row(row: tuple[Taps, Array | None]) -> tuple[Int32[Array, "T"], Float32[Array, ""] | None]:
        taps, others = row
        row_scores = _interpolate(scores, taps, axis=0)  # (K, T)
        if others is not None:
            row_scores += others
        label = first_argmax(row_scores, axis=0)
        return label, None if inside is None else (_uncertainty(row_scores) * inside).sum()

    # On a CPU row by row, so that the scores of the whole tile are never in memory: all rows at once take three times
    # as long. Other devices prefer few large steps.
    inputs = rows.to_photo, total
    labels, uncertainty = jax.lax.map(label_row, inputs) if row_by_row else jax.vmap(label_row)(inputs)  # (S, T), (S,)
    return labels.astype(label_dtype(class_probabilities.shape[1])), uncertainty


def _uncertainty(scores: Float32[Array, "K T"]) -> Float32[Array, "T"]:
    """The uncertainty of each pixel; 1 if all its scores are 0."""
    shares = scores / jnp.maximum(scores.sum(axis=0), 1e-30)  # before squaring: squares of small scores underflow
    return jnp.maximum(1 - (shares * shares).sum(axis=0), 0)


@functools.partial(jax.jit, donate_argnames="total")
def _add_tile(
    total: Float32[Array, "S K T"] | None,
    class_probabilities: Float[Array | np.ndarray, "Q K"],
    mask_logits: Float[Array | np.ndarray, "h w Q"],
    weight: Float32[Array | np.ndarray | np.float32, ""],
    rows: AxisPlan,
    columns: AxisPlan,
) -> Float32[Array, "S K T"]:
    """Add the scores of a view to the `total` of a tile, in place."""
    scores = _resize_columns(class_probabilities * weight, mask_logits, rows, columns)  # (R, K, T)
    scores = _interpolate(scores, rows.to_photo, axis=0)
    return scores if total is None else total + scores


def _resize_columns(
    class_probabilities: Float[Array | np.ndarray, "Q K"],
    mask_logits: Float[Array | np.ndarray, "h w Q"],
    rows: AxisPlan,
    columns: AxisPlan,
) -> Float32[Array, "R K T"]:
    """Scores of a view at the tile's source rows, resized to the tile's columns."""
    masks = _interpolate(_interpolate(mask_logits, rows.from_masks, axis=0), columns.from_masks, axis=1)  # (R, C, Q)
    # "highest": TPUs otherwise round the factors to bfloat16, recent GPUs to TF32.
    scores = jnp.einsum("rcq,qk->rck", jax.nn.sigmoid(masks), class_probabilities, precision="highest")
    return _interpolate(scores, columns.to_photo, axis=1).swapaxes(1, 2)  # (R, T, K) -> (R, K, T)


def _interpolate(x: Float[Array | np.ndarray, "..."], taps: Taps, axis: int) -> Float[Array, "..."]:
    """Interpolate along an axis; the axis vanishes if `taps` holds scalars."""

    def weighted(index, weight):
        weight = weight.reshape(index.shape + (1,) * (x.ndim - 1 - axis))  # broadcast over the axes behind
        return jnp.take(x, index, axis, mode="clip") * weight

    return weighted(taps.low, taps.low_weight) + weighted(taps.high, taps.high_weight)
