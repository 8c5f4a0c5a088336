"""Deformable attention by Pallas kernels for NVIDIA GPUs, which Triton compiles.

As gathers, XLA keeps the sum over samples in memory, and reads and writes it once for each of them. Here a program
takes a tile of rows, one for each query and head, and holds their sums in registers while it goes through all levels
and points. A second kernel finds the gradients of locations and weights in the same way. That of the values is a
scatter by XLA, whose additions are made in a fixed order where `--xla_gpu_deterministic_ops` asks for it.

Rows of queries are (image * Q + query) * M + head, rows of values (image * N + token) * M + head.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from fasseg_jax.ops.deformable.geometry import Corner, Shapes, corners, token_rows

__all__ = ["fused_sample", "fused_sample_gradients"]

TILE = 64  # rows of a program
WARPS = 4  # that it runs on: each loads eight rows of 32 bfloat16 channels at once


class Sizes(NamedTuple):
    """Of the arrays, as the kernels need them."""

    n: int
    q: int
    m: int
    d: int
    points: int
    rows: int  # of queries, B * Q * M
    shapes: Shapes


def fused_sample(values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """`deformable_sample` by one kernel."""
    out = _call(_sample_kernel, "deformable_sample", shapes, values, locations, weights)
    b, q, m = locations.shape[:3]
    return out.reshape(b, q, m, -1)  # (B Q M, D) -> (B, Q, M, D)


def fused_sample_gradients(
    values: jax.Array, locations: jax.Array, weights: jax.Array, gradient: jax.Array, shapes: Shapes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of values, locations and weights, given that of the output (B, Q, M, D)."""
    by_query = _call(_gradient_kernel, "deformable_sample_gradients", shapes, values, locations, weights, gradient)
    by_location, by_weight = (x.reshape(y.shape) for x, y in zip(by_query, (locations, weights), strict=True))
    return _values_gradient(values, locations, weights, gradient, shapes), by_location, by_weight


def _values_gradient(values, locations, weights, gradient, shapes):
    rows, first_row = token_rows(values)
    first_row, gradient = first_row[..., None], gradient.astype(jnp.float32)  # (B, 1, M, 1), (B, Q, M, D)
    total, start = jnp.zeros(rows.shape, jnp.float32), 0
    for level, (h, w) in enumerate(shapes):
        xy = locations[:, :, :, level, :, 0], locations[:, :, :, level, :, 1]  # (B, Q, M, P) each
        for corner in corners(xy, (h, w)):
            row = first_row + (start + corner.token) * values.shape[2]
            near = jnp.where(corner.inside, corner.near_x * corner.near_y * weights[:, :, :, level], 0)
            update = near[..., None] * gradient[..., None, :]  # (B, Q, M, P, D)
            total = total.at[row].add(update, mode="promise_in_bounds")
        start += h * w
    return total.reshape(values.shape).astype(values.dtype)  # (B N M, D) -> (B, N, M, D)


def _call(body, name, shapes, values, locations, weights, *gradient):
    """A kernel over arrays of rows: values (B N M, D), locations (B Q M, levels P 2), weights (B Q M, levels P)."""
    (_, n, m, d), (b, q, *_, points, _) = values.shape, locations.shape
    sizes = Sizes(n, q, m, d, points, b * q * m, shapes)
    by_query = [x.astype(jnp.float32).reshape(sizes.rows, -1) for x in (locations, weights)]
    arrays = values.reshape(-1, d), *by_query, *(x.reshape(-1, d) for x in gradient)
    out = jax.ShapeDtypeStruct((sizes.rows, d), values.dtype)
    if gradient:
        out = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in by_query]

    def run(*arrays, interpret):
        return pl.pallas_call(
            functools.partial(body, sizes),
            grid=(pl.cdiv(sizes.rows, TILE),),
            out_shape=out,
            compiler_params=pltriton.CompilerParams(num_warps=WARPS),
            interpret=interpret,
            name=name,
        )(*arrays)

    # Without a GPU the kernel is emulated.
    kernel, emulation = (functools.partial(run, interpret=interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(*arrays, cuda=kernel, default=emulation)


# The kernels


class _Sample(NamedTuple):
    """One level's and point's samples of a tile's rows."""

    column: int  # of their weights
    weight: jax.Array  # (TILE,)
    size: tuple[int, int]  # (h, w) of the level
    corners: list[tuple[jax.Array, Corner]]  # each with its rows of values (TILE,)


class _Tile:
    """The rows of a program; what lies beside the last row is masked."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.row = pl.program_id(0) * TILE + jnp.arange(TILE, dtype=jnp.int32)
        self.exists = self.row < sizes.rows
        image, head = self.row // (sizes.q * sizes.m), self.row % sizes.m
        self.first_row = image * (sizes.n * sizes.m) + head  # of the values of this image and head
        self.channel = jnp.arange(pl.next_power_of_2(sizes.d), dtype=jnp.int32)  # Triton knows no other lengths

    def samples(self, locations, weights) -> Iterator[_Sample]:
        """All samples of the rows, in the order of the weights."""
        column = start = 0
        for h, w in self.sizes.shapes:
            for _ in range(self.sizes.points):
                xy = self.column(locations, 2 * column), self.column(locations, 2 * column + 1)
                pixels = [(self.first_row + (start + c.token) * self.sizes.m, c) for c in corners(xy, (h, w))]
                yield _Sample(column, self.column(weights, column), (h, w), pixels)
                column += 1
            start += h * w

    def column(self, array, column: int) -> jax.Array:
        """One number of each row, (TILE,)."""
        return pltriton.load(array.at[self.row, column], mask=self.exists, other=0)

    def store_column(self, array, column: int, x: jax.Array) -> None:
        """The inverse of `column`."""
        pltriton.store(array.at[self.row, column], x, mask=self.exists)

    def whole(self, array, rows: jax.Array):
        """Whole rows of an array, (TILE, channels)."""
        return array.at[tuple(jnp.broadcast_arrays(rows[:, None], self.channel))]

    def mask(self, chosen: jax.Array) -> jax.Array:
        """Of whole rows: those chosen that exist."""
        return (chosen & self.exists)[:, None] & (self.channel < self.sizes.d)

    def load(self, array, rows: jax.Array, chosen: jax.Array) -> jax.Array:
        """Whole rows as float32, (TILE, channels), those not chosen as zero."""
        return pltriton.load(self.whole(array, rows), mask=self.mask(chosen), other=0).astype(jnp.float32)


def _sample_kernel(sizes, values, locations, weights, out):
    tile = _Tile(sizes)
    total = jnp.zeros((TILE, len(tile.channel)), jnp.float32)
    for sample in tile.samples(locations, weights):
        for row, corner in sample.corners:
            near = corner.near_x * corner.near_y * sample.weight
            total += near[:, None] * tile.load(values, row, corner.inside)
    pltriton.store(tile.whole(out, tile.row), total.astype(out.dtype), mask=tile.mask(tile.exists))


def _gradient_kernel(sizes, values, locations, weights, gradient, by_location, by_weight):
    tile = _Tile(sizes)
    gradient = tile.load(gradient, tile.row, tile.exists)
    for sample in tile.samples(locations, weights):
        x, y, weight = (jnp.zeros(TILE, jnp.float32) for _ in range(3))
        for row, corner in sample.corners:
            product = (tile.load(values, row, corner.inside) * gradient).sum(axis=1)  # (TILE, channels) -> (TILE,)
            x += corner.slope_x * corner.near_y * product
            y += corner.slope_y * corner.near_x * product
            weight += corner.near_x * corner.near_y * product
        h, w = sample.size
        tile.store_column(by_location, 2 * sample.column, w * sample.weight * x)
        tile.store_column(by_location, 2 * sample.column + 1, h * sample.weight * y)
        tile.store_column(by_weight, sample.column, weight)
