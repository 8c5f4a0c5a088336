"""Deformable sampling by Pallas kernels for NVIDIA GPUs, which Triton compiles.

Computes the same as `reference.deformable_sample`. The difference: XLA's gathers would read and write the sum over
samples in memory once for each of them. Here a program takes a tile of rows, one for each query and head, and holds
their sums in registers while it goes through all levels and points. A second kernel finds the gradients of locations
and weights in the same way. The gradient of the values is a scatter by XLA, which adds in a fixed order where
`--xla_gpu_deterministic_ops` asks for it.

Rows of queries are numbered (image * Q + query) * M + head, rows of values (image * N + token) * M + head.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float

from fasseg_jax.ops.bilinear import Corner, corners
from fasseg_jax.ops.deformable.geometry import Shapes, level_starts, value_rows

__all__ = ["sample", "sample_gradients"]

TILE = 64  # rows of a program
WARPS = 4  # of a program; each warp loads eight rows of 32 bfloat16 channels at once


class Sizes(NamedTuple):
    """Sizes of the arrays, as the kernels need them."""

    n: int
    q: int
    m: int
    d: int
    points: int
    rows: int  # of queries, B * Q * M
    shapes: Shapes


def sample(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    shapes: Shapes,
) -> Float[Array, "B Q M D"]:
    """`deformable_sample` by one kernel."""
    out = _call(_sample_kernel, "deformable_sample", shapes, values, locations, weights)
    b, q, m = locations.shape[:3]
    return out.reshape(b, q, m, -1)  # (B * Q * M, D) -> (B, Q, M, D)


def sample_gradients(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    grad_out: Float[Array, "B Q M D"],
    shapes: Shapes,
) -> tuple[Float[Array, "B N M D"], Float[Array, "B Q M levels P 2"], Float[Array, "B Q M levels P"]]:
    """Gradients of values, locations and weights."""
    grad_locations, grad_weights = _call(
        _gradient_kernel, "deformable_sample_gradients", shapes, values, locations, weights, grad_out
    )
    return (
        _values_gradient(values, locations, weights, grad_out, shapes),
        grad_locations.reshape(locations.shape),
        grad_weights.reshape(weights.shape),
    )


def _values_gradient(values, locations, weights, grad_out, shapes):
    rows, first_row = value_rows(values)
    first_row, grad_out = first_row[..., None], grad_out.astype(jnp.float32)  # (B, 1, M, 1), (B, Q, M, D)
    grad_rows = jnp.zeros(rows.shape, jnp.float32)
    for level, (start, size) in enumerate(zip(level_starts(shapes), shapes, strict=True)):
        x, y = locations[:, :, :, level, :, 0], locations[:, :, :, level, :, 1]  # (B, Q, M, P) each
        for corner in corners(x, y, size):
            row = first_row + (start + corner.pixel) * values.shape[2]
            row = jnp.where(corner.inside, row, len(rows))  # the scatter drops what lies outside
            # Without the barrier XLA would compute row and share again for each channel.
            row, share = jax.lax.optimization_barrier((row, corner.weight * weights[:, :, :, level]))
            update = share[..., None] * grad_out[..., None, :]  # (B, Q, M, P, D)
            grad_rows = grad_rows.at[row].add(update, mode="drop", wrap_negative_indices=False)
    return grad_rows.reshape(values.shape).astype(values.dtype)  # (B * N * M, D) -> (B, N, M, D)


def _call(body, name, shapes, values, locations, weights, *grad_out):
    """Run a kernel over rows: values (B N M, D), locations (B Q M, levels P 2), weights (B Q M, levels P)."""
    (_, n, m, d), (b, q, *_, points, _) = values.shape, locations.shape
    sizes = Sizes(n, q, m, d, points, b * q * m, shapes)
    of_queries = [x.astype(jnp.float32).reshape(sizes.rows, -1) for x in (locations, weights)]
    arrays = values.reshape(-1, d), *of_queries, *(x.reshape(-1, d) for x in grad_out)
    if grad_out:
        out_shape = [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in of_queries]
    else:
        out_shape = jax.ShapeDtypeStruct((sizes.rows, d), values.dtype)

    def run(*arrays, interpret):
        return pl.pallas_call(
            functools.partial(body, sizes),
            grid=(pl.cdiv(sizes.rows, TILE),),
            out_shape=out_shape,
            compiler_params=pltriton.CompilerParams(num_warps=WARPS),
            interpret=interpret,
            name=name,
        )(*arrays)

    # Pallas emulates the kernel where there is no GPU.
    compiled, emulated = (functools.partial(run, interpret=interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(*arrays, cuda=compiled, default=emulated)


# The kernels


class _Sample(NamedTuple):
    """One level's and point's samples of a tile's rows."""

    column: int  # of their weights
    weight: jax.Array  # (TILE,)
    size: tuple[int, int]  # (h, w) of the level
    corners: list[tuple[jax.Array, Corner]]  # each with its rows of values, (TILE,)


class _Tile:
    """The rows of a program; rows past the last one are masked."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.row = pl.program_id(0) * TILE + jnp.arange(TILE, dtype=jnp.int32)
        self.exists = self.row < sizes.rows
        image, head = self.row // (sizes.q * sizes.m), self.row % sizes.m
        self.first_row = image * (sizes.n * sizes.m) + head  # of the values of this image and head
        self.channel = jnp.arange(pl.next_power_of_2(sizes.d), dtype=jnp.int32)  # Triton has no other lengths

    def samples(self, locations, weights) -> Iterator[_Sample]:
        """All samples of the rows, in the order of the weights."""
        column = 0
        for start, size in zip(level_starts(self.sizes.shapes), self.sizes.shapes, strict=True):
            for _ in range(self.sizes.points):
                x, y = self.column(locations, 2 * column), self.column(locations, 2 * column + 1)
                pixels = [(self.first_row + (start + c.pixel) * self.sizes.m, c) for c in corners(x, y, size)]
                yield _Sample(column, self.column(weights, column), size, pixels)
                column += 1

    def column(self, array, column: int) -> jax.Array:
        """One number of each row, (TILE,)."""
        return pltriton.load(array.at[self.row, column], mask=self.exists, other=0)

    def store_column(self, array, column: int, x: jax.Array) -> None:
        """The inverse of `column`."""
        pltriton.store(array.at[self.row, column], x, mask=self.exists)

    def whole(self, array, rows: jax.Array):
        """Whole rows of an array, (TILE, channels)."""
        return array.at[tuple(jnp.broadcast_arrays(rows[:, None], self.channel))]

    def valid(self, chosen: jax.Array) -> jax.Array:
        """Which elements of whole rows to read or write: those of chosen rows that exist."""
        return (chosen & self.exists)[:, None] & (self.channel < self.sizes.d)

    def load(self, array, rows: jax.Array, chosen: jax.Array) -> jax.Array:
        """Whole rows as float32, (TILE, channels), zero where not chosen."""
        return pltriton.load(self.whole(array, rows), mask=self.valid(chosen), other=0).astype(jnp.float32)


def _sample_kernel(sizes, values, locations, weights, out):
    tile = _Tile(sizes)
    total = jnp.zeros((TILE, len(tile.channel)), jnp.float32)
    for sample in tile.samples(locations, weights):
        for row, corner in sample.corners:
            share = corner.weight_x * corner.weight_y * sample.weight
            total += share[:, None] * tile.load(values, row, corner.inside)
    pltriton.store(tile.whole(out, tile.row), total.astype(out.dtype), mask=tile.valid(tile.exists))


def _gradient_kernel(sizes, values, locations, weights, grad_out, grad_locations, grad_weights):
    tile = _Tile(sizes)
    grad = tile.load(grad_out, tile.row, tile.exists)
    for sample in tile.samples(locations, weights):
        grad_x, grad_y, grad_weight = (jnp.zeros(TILE, jnp.float32) for _ in range(3))
        for row, corner in sample.corners:
            product = (tile.load(values, row, corner.inside) * grad).sum(axis=1)  # (TILE, channels) -> (TILE,)
            grad_x += corner.slope_x * corner.weight_y * product
            grad_y += corner.slope_y * corner.weight_x * product
            grad_weight += corner.weight_x * corner.weight_y * product
        h, w = sample.size
        tile.store_column(grad_locations, 2 * sample.column, w * sample.weight * grad_x)
        tile.store_column(grad_locations, 2 * sample.column + 1, h * sample.weight * grad_y)
        tile.store_column(grad_weights, sample.column, grad_weight)
