"""The Pallas kernels of `tpu.py`, which explains what they compute. Each call is for one image, head and tile."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

__all__ = ["TILE", "Level", "sample", "sample_gradients"]

TILE = 256  # queries of a tile, the lanes of two vector registers: while one waits for its matmul, the other works
QUERIES = 2  # the axis of the kernels' grids along the tiles of queries


class Level(NamedTuple):
    """A level as the kernels see it: `chunks` of `rows` rows of `padded_width` pixels, the depth of one matmul."""

    h: int
    w: int
    padded_width: int
    rows: int
    chunks: int

    @property
    def depth(self) -> int:
        """Pixels of a chunk."""
        return self.rows * self.padded_width


def sample(levels, bounds, x, y, weights, *refs):
    """Write the output (D, TILE): the sum over all chunks of the map's chunk times its matrix A.

    The matrix unit answers late, so a chunk is multiplied while the next one's matrix is formed: form(0); multiply(0),
    form(1); multiply(1), form(2); and so on, also from one level to the next.
    """
    maps, out, matrices = refs[: len(levels)], refs[len(levels)], refs[len(levels) + 1 :]

    def form(i, hats_x, chunk):
        hats_y = [weights[0, 0, i] * _hat(distance) for distance in _distances_y(y[0, 0, i], chunk, levels[i])]
        matrices[i][...] = _matrix(hats_y, hats_x).astype(out.dtype)  # (depth, TILE)

    def multiply(i, chunk):
        return _matmul(maps[i][0, 0, chunk], matrices[i][...], (1, 0))  # (D, TILE)

    total = jnp.zeros(out.shape[2:], jnp.float32)
    formed = None  # level and chunk of the matrix that waits to be multiplied
    for i, level in enumerate(levels):
        first, last = _chunk_range(bounds, i)
        hats_x = [_hat(distance) for distance in _distances_x(x[0, 0, i], level)]

        def step(chunk, total, i=i, hats_x=hats_x):
            total = total + multiply(i, chunk - 1)
            form(i, hats_x, chunk)
            return total

        if formed is not None:
            total = total + multiply(*formed)
        form(i, hats_x, first)
        total = jax.lax.fori_loop(first + 1, last + 1, step, total)
        formed = i, last
    out[0, 0] = (total + multiply(*formed)).astype(out.dtype)


def sample_gradients(levels, bounds, x, y, weights, *refs):
    """Write the gradients of x, y and weights, and add to those of the maps, which stay for all tiles of a head."""
    maps, (grad_out, *refs) = refs[: len(levels)], refs[len(levels) :]
    grad_samples, grad_maps = refs[:3], refs[3:]

    @pl.when(pl.program_id(QUERIES) == 0)
    def _():
        for grad_map in grad_maps:
            grad_map[...] = jnp.zeros(grad_map.shape, grad_map.dtype)

    for i, level in enumerate(levels):
        samples = x[0, 0, i], y[0, 0, i], weights[0, 0, i]
        gradients = _level_gradients(level, _chunk_range(bounds, i), samples, grad_out[0, 0], maps[i], grad_maps[i])
        for out, gradient in zip(grad_samples, gradients, strict=True):
            out[0, 0, i] = gradient


def _level_gradients(level, chunk_range, samples, grad_out, values, grad_values):
    """Gradients of x, y and weights, all (P, TILE), given grad_out (D, TILE); adds to `grad_values`."""
    x, y, weights = samples
    distances_x = _distances_x(x, level)
    hats_x = [_hat(distance) for distance in distances_x]
    slopes_x = [_hat_slope(distance) for distance in distances_x]

    def step(chunk, totals):
        distances_y = _distances_y(y, chunk, level)
        matrix = _matrix([weights * _hat(distance) for distance in distances_y], hats_x).astype(grad_out.dtype)
        grad_values[0, 0, chunk] += _matmul(grad_out, matrix, (1, 1))  # (D, depth)
        grad_matrix = _matmul(values[0, 0, chunk], grad_out, (0, 0))  # (depth, TILE)
        grad_matrix = grad_matrix.reshape(level.rows, level.padded_width, TILE)
        grad_x, grad_y, grad_weights = totals
        for row, distance in zip(grad_matrix, distances_y, strict=True):
            value, slope = _sums_along(row, hats_x), _sums_along(row, slopes_x)  # (P, TILE), at the samples' x
            grad_x += _hat(distance) * slope
            grad_y += _hat_slope(distance) * value
            grad_weights += _hat(distance) * value
        return grad_x, grad_y, grad_weights

    first, last = chunk_range
    zeros = jnp.zeros(x.shape, jnp.float32)
    grad_x, grad_y, grad_weights = jax.lax.fori_loop(first, last + 1, step, (zeros, zeros, zeros))
    return weights * grad_x, weights * grad_y, grad_weights


def _sums_along(row, factors):
    """A row of pixels (padded_width, TILE), weighted by each point's factors and summed: (P, TILE)."""
    return jnp.concatenate([(row * factor).sum(axis=0, keepdims=True) for factor in factors])


def _chunk_range(bounds, level: int):
    """First and last chunk of a level for this tile."""
    tile = pl.program_id(QUERIES)
    return bounds[0, 0, 2 * level, tile], bounds[0, 0, 2 * level + 1, tile]


def _distances_x(x, level):
    """From each column to each point, x (P, TILE): P arrays (padded_width, TILE)."""
    columns = jax.lax.broadcasted_iota(jnp.int32, (level.padded_width, TILE), 0).astype(jnp.float32)
    return [x[point : point + 1] - columns for point in range(x.shape[0])]


def _distances_y(y, chunk, level):
    """From each row of a chunk to all points, y (P, TILE): one array (P, TILE) for each row."""
    return [y - (chunk * level.rows + row).astype(jnp.float32) for row in range(level.rows)]


def _matrix(hats_y, hats_x):
    """The matrix A of a chunk, (depth, TILE), from the hats of the points at each row and at each column."""
    rows = [sum(hat[point : point + 1] * columns for point, columns in enumerate(hats_x)) for hat in hats_y]
    return jnp.concatenate(rows)


def _hat(distance):
    return jnp.maximum(1 - jnp.abs(distance), 0)


def _hat_slope(distance):
    """Derivative of `_hat`; at whole numbers that from the right, as of interpolation by floor."""
    return jnp.where((distance >= -1) & (distance < 1), jnp.where(distance < 0, 1.0, -1.0), 0.0)


def _matmul(a, b, contracted):
    """Matmul over one axis of each, in float32 exactly if both are float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
