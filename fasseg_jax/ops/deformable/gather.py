"""Deformable sampling by gathers of rows, for CPUs and all devices that have no kernel.

Computes the same as `reference.deformable_sample`. The differences: the sum goes through the samples one by one, so
that none is stored; the backward pass reads the four pixels around a sample as one row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fasseg_jax.ops.bilinear import corners
from fasseg_jax.ops.deformable.geometry import Shapes, level_starts, split_levels, value_rows

__all__ = ["sample", "sample_gradients"]


def sample(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    shapes: Shapes,
) -> Float[Array, "B Q M D"]:
    """`deformable_sample` by one gather for each corner of each sample."""
    rows, first_row = value_rows(values)

    def add_sample(total, sample):
        size, start, (x, y), weight = sample
        for corner in corners(x, y, size):
            row = first_row + (start + corner.pixel) * values.shape[2]  # (B, Q, M)
            share = corner.weight * weight
            total += share[..., None] * rows.at[row].get(mode="promise_in_bounds")  # (B, Q, M, D)
        return total, None

    # A loop over the samples, not one expression: XLA would merge that with what follows into a loop that no longer
    # copies whole rows, is twice as slow on a CPU, and takes longer to compile.
    total = jnp.zeros((*locations.shape[:3], values.shape[3]), jnp.float32)
    total, _ = jax.lax.scan(add_sample, total, _samples(locations, weights, shapes))
    return total.astype(values.dtype)


def _samples(locations, weights, shapes):
    """The loop's inputs for each of levels * P samples: its level's size (h, w) and first token, its xy and weight."""
    b, q, m, _, points, _ = locations.shape
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # (levels * P, 2)
    starts = np.repeat(np.array(level_starts(shapes), np.int32), points)  # (levels * P,)
    locations = locations.transpose(3, 4, 5, 0, 1, 2).reshape(-1, 2, b, q, m)  # (levels * P, xy, B, Q, M)
    weights = weights.transpose(3, 4, 0, 1, 2).reshape(-1, b, q, m)  # (levels * P, B, Q, M)
    return (sizes[:, 0], sizes[:, 1]), starts, (locations[:, 0], locations[:, 1]), weights


def sample_gradients(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    grad_out: Float[Array, "B Q M D"],
    shapes: Shapes,
) -> tuple[Float[Array, "B N M D"], Float[Array, "B Q M levels P 2"], Float[Array, "B Q M levels P"]]:
    """Gradients of values, locations and weights."""
    grad_out = grad_out.astype(jnp.float32)
    gradients = [
        _level_gradients(level_values, locations[:, :, :, level], weights[:, :, :, level], grad_out, size)
        for level, (level_values, size) in enumerate(zip(split_levels(values, shapes), shapes, strict=True))
    ]
    grad_values, grad_locations, grad_weights = zip(*gradients, strict=True)
    return (
        jnp.concatenate(grad_values, axis=1).astype(values.dtype),
        jnp.stack(grad_locations, axis=3),
        jnp.stack(grad_weights, axis=3),
    )


# The derivative within one level. A sample lies in a cell, the square between the centers of four pixels:
#
#     nw ----- ne    Interpolation along x:  north = nw + right * (ne - nw)
#     |    |    |                            south = sw + right * (se - sw)
#     |---- s --|    and along y:            s     = north + down * (south - north)
#     |    |    |
#     sw ----- se    `right` and `down`, in [0, 1), are measured in pixels from nw.
#
# out = sum of weight * s, so with grad_out every pixel counts only by its product with it: nw below is
# (nw . grad_out), and so on. s then is the gradient of the weight, and weight * ds/dx that of x.
#
# XLA's scatters on a CPU cost by the row. Hence the four pixels of a cell are one row of 4 D channels, and a sample
# reads one row and adds to one.


class _Cells(NamedTuple):
    """The cell of each sample, (P, B, Q, M)."""

    row: Int[Array, "P B Q M"]  # of the cells' rows, see `_cell_rows`
    inside: Bool[Array, "P B Q M"]  # whether the cell has a pixel in the map
    right: Float[Array, "P B Q M"]
    down: Float[Array, "P B Q M"]

    def corner_weights(self) -> Float[Array, "P B Q M 4"]:
        """Of nw, ne, sw and se."""
        right, down = self.right, self.down
        return jnp.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], axis=-1)


def _level_gradients(values, locations, weights, grad_out, size):
    h, w = size
    rows, sum_into_pixels = jax.vjp(functools.partial(_cell_rows, size=size), values.astype(jnp.float32))
    cells = _cells(locations, size)
    weight = weights.transpose(3, 0, 1, 2)  # (B, Q, M, P) -> (P, B, Q, M)
    shares = jnp.where(cells.inside[..., None], cells.corner_weights() * weight[..., None], 0)

    grad_rows, products = _read_and_add(rows, cells.row, shares, grad_out)
    nw, ne, sw, se = jnp.moveaxis(jnp.where(cells.inside[..., None], products, 0), -1, 0)  # (P, B, Q, M) each
    north, south = nw + cells.right * (ne - nw), sw + cells.right * (se - sw)
    grad_x = weight * w * ((1 - cells.down) * (ne - nw) + cells.down * (se - sw))
    grad_y = weight * h * (south - north)
    grad_weight = north + cells.down * (south - north)

    (grad_values,) = sum_into_pixels(grad_rows)
    grad_locations = jnp.moveaxis(jnp.stack([grad_x, grad_y], axis=-1), 0, 3)  # (B, Q, M, P, 2)
    return grad_values, grad_locations, jnp.moveaxis(grad_weight, 0, 3)


def _cell_rows(values, size):
    """The pixels nw, ne, sw, se of all cells, those at the border included: (B * (h + 1) * (w + 1) * M, 4 * D)."""
    (b, _, m, d), (h, w) = values.shape, size
    padded = jnp.pad(values.reshape(b, h, w, m, d), ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    pixels = [padded[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(pixels, axis=-1).reshape(-1, 4 * d)


def _cells(locations, size):
    (b, _, m, *_), (h, w) = locations.shape, size
    x, y = locations.transpose(4, 3, 0, 1, 2)  # (B, Q, M, P, xy) -> (xy, P, B, Q, M)
    x, y = x * w - 0.5, y * h - 0.5
    west, north = jnp.floor(x), jnp.floor(y)
    inside = (west >= -1) & (west < w) & (north >= -1) & (north < h)
    # Cells are numbered from the one north-west of the first pixel; samples outside read that one too.
    column, line = (jnp.where(inside, start, -1).astype(jnp.int32) + 1 for start in (west, north))
    image, head = np.arange(b)[:, None, None], np.arange(m)
    row = ((image * (h + 1) + line) * (w + 1) + column) * m + head
    return _Cells(row, inside, x - west, y - north)


def _read_and_add(rows, row, shares, grad_out):
    """What each sample reads of its cell, and adds to the cell's gradient.

    Args:
      rows: of all cells, (cells, 4 * D).
      row: of each sample's cell, (P, B, Q, M).
      shares: of nw, ne, sw, se in the weighted sample, (P, B, Q, M, 4).
      grad_out: (B, Q, M, D).

    Returns:
      The gradient of `rows`, and the products of the four pixels with `grad_out`, (P, B, Q, M, 4).
    """
    d = grad_out.shape[-1]
    grad_out_4 = jnp.tile(grad_out, 4)  # (B, Q, M, 4 * D)
    # A sum over channels is a matmul with a constant, because XLA does not vectorize sums along rows.
    sum_channels = np.kron(np.eye(4), np.ones((d, 1))).astype(np.float32)  # (4 * D, 4)

    # The caller forms `shares` before the loop: within it, XLA would compute them again for each channel.
    def step(grad_rows, sample):
        row, shares = sample  # (B, Q, M), (B, Q, M, 4)
        products = (rows.at[row].get(mode="promise_in_bounds") * grad_out_4).reshape(-1, 4 * d)
        products = jnp.matmul(products, sum_channels, precision="highest").reshape(*row.shape, 4)
        update = (shares[..., None] * grad_out[..., None, :]).reshape(*row.shape, 4 * d)
        return grad_rows.at[row].add(update, mode="promise_in_bounds"), products

    return jax.lax.scan(step, jnp.zeros_like(rows), (row, shares))
