"""Deformable attention as dense products, for TPUs, whose matrix units are fast and whose gathers of rows are slow.

Bilinear interpolation weighs pixel (i, j) by hat(x - j) * hat(y - i), where hat(t) = max(0, 1 - |t|). A tile of queries
thus reads a level through a matrix A (pixels, queries) of A[(i, j), q] = sum_p a_p(q) hat(y_p(q) - i) hat(x_p(q) - j);
its output is values^T A. A is formed in the chip's fast memory a few rows of pixels at a time, multiplied at once
and never stored. Of a level only the rows between the tile's highest and lowest sample are visited, as all others have
weight zero: offsets are small, so these are few, but any offset gives the right result. The derivative is products too.

XLA divides no kernel among devices, and JAX's custom partitioning does not work on TPUs (jax-ml/jax, issue 38196): this
is for arrays on one device, and for several inside `jax.shard_map` (`parallel.on_each_device`).

Queries lie along the lanes, so that a pixel's weights are whole vector registers and no value is moved between lanes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fasseg_jax.ops.deformable.geometry import Shapes

__all__ = ["chunk_bounds", "dense_sample", "dense_sample_gradients"]

TILE = 256  # queries of a tile, the lanes of two vector registers: while one waits for its product, the other works
SUBLANES = 8  # rows of a vector register; widths are padded to multiples of it
DEPTH = 256  # pixels of a chunk, about: two passes of the matrix unit, enough work to hide its latency
QUERIES = 2  # the axis of the kernels' grids along the tiles of queries


class Level(NamedTuple):
    """A level as the kernels see it: `chunks` of `rows` rows of `padded_width` pixels, the depth of one product."""

    h: int
    w: int
    padded_width: int
    rows: int
    chunks: int

    @property
    def depth(self) -> int:
        """Pixels of a chunk."""
        return self.rows * self.padded_width


@functools.partial(jax.jit, static_argnames="shapes")  # traced once for all layers
def dense_sample(values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """`deformable_sample` by dense products."""
    levels, q = _levels(shapes), locations.shape[1]
    queries, maps = _queries(locations, weights, levels), _maps(values, levels)
    b, m, d = values.shape[0], values.shape[2], values.shape[3]
    out = _call(
        functools.partial(_sample_kernel, levels),
        (*queries, *maps),
        out_specs=_tile_spec(d),
        out_shape=jax.ShapeDtypeStruct((b, m, d, queries.weights.shape[-1]), values.dtype),
        scratch_shapes=[pltpu.VMEM((level.depth, TILE), values.dtype) for level in levels],
        name="deformable_sample",
    )
    return out[..., :q].transpose(0, 3, 1, 2)  # (B, M, D, Q) -> (B, Q, M, D)


@functools.partial(jax.jit, static_argnames="shapes")
def dense_sample_gradients(
    values: jax.Array, locations: jax.Array, weights: jax.Array, gradient: jax.Array, shapes: Shapes
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of values, locations and weights, given that of the output (B, Q, M, D)."""
    levels, q = _levels(shapes), locations.shape[1]
    queries, maps = _queries(locations, weights, levels), _maps(values, levels)
    gradient = gradient.astype(values.dtype).transpose(0, 2, 3, 1)  # (B, Q, M, D) -> (B, M, D, Q)
    gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, 0), (0, -q % TILE)))
    of_samples = jax.ShapeDtypeStruct(queries.weights.shape, jnp.float32)
    x, y, by_weight, *maps = _call(
        functools.partial(_gradient_kernel, levels),
        (*queries, *maps, gradient),
        out_specs=[*[_tile_spec(*of_samples.shape[2:4])] * 3, *map(_map_spec, maps)],
        out_shape=[*[of_samples] * 3, *[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in maps]],
        name="deformable_sample_gradients",
    )
    size = np.array([(level.w, level.h) for level in levels], np.float32)  # from pixels to [0, 1]
    by_location = jnp.stack([x, y], axis=-1)[..., :q, :] * size[:, None, None]  # (B, M, levels, P, Q, 2)
    return (
        _tokens(maps, levels).astype(values.dtype),
        by_location.transpose(0, 4, 1, 2, 3, 5),  # -> (B, Q, M, levels, P, 2)
        by_weight[..., :q].transpose(0, 4, 1, 2, 3),  # -> (B, Q, M, levels, P)
    )


# What the kernels read


class _Queries(NamedTuple):
    """Samples of all queries, Q padded to whole tiles.

    bounds: int32 (B, M, 2 * levels, tiles), first and last chunk that a tile reads of each level; at least one.
    x, y: float32 (B, M, levels, P, Q), in pixels of the level, whose centres are whole numbers.
    weights: float32 (B, M, levels, P, Q).
    """

    bounds: jax.Array
    x: jax.Array
    y: jax.Array
    weights: jax.Array


def _levels(shapes: Shapes) -> list[Level]:
    levels = []
    for h, w in shapes:
        padded_width = pl.cdiv(w, SUBLANES) * SUBLANES
        rows = max(1, DEPTH // padded_width)
        levels.append(Level(h, w, padded_width, rows, pl.cdiv(h, rows)))
    return levels


def _queries(locations: jax.Array, weights: jax.Array, levels: list[Level]) -> _Queries:
    size = np.array([(level.w, level.h) for level in levels], np.float32)  # (levels, xy)
    xy = locations.astype(jnp.float32) * size[:, None] - 0.5
    padding = [(0, 0)] * 4 + [(0, -locations.shape[1] % TILE)]
    # Queries beside the last ones repeat it, so that no tile visits more rows for them; their weights are zero.
    x, y = (
        jnp.pad(xy[..., i].transpose(0, 2, 3, 4, 1), padding, mode="edge") for i in range(2)
    )  # (B, Q, M, levels, P) -> (B, M, levels, P, Q)
    weights = jnp.pad(weights.astype(jnp.float32).transpose(0, 2, 3, 4, 1), padding)

    return _Queries(_chunk_bounds(y, levels), x, y, weights)


def chunk_bounds(locations: jax.Array, shapes: Shapes) -> jax.Array:
    """Which chunks of each level the kernels visit for samples at `locations`: `_Queries.bounds`."""
    weights = jnp.zeros(locations.shape[:-1])
    return _queries(locations, weights, _levels(shapes)).bounds


def _chunk_bounds(y: jax.Array, levels: list[Level]) -> jax.Array:
    by_tile = y.reshape(*y.shape[:4], -1, TILE)  # (B, M, levels, P, tiles, TILE)
    rows, chunks = (np.array(n)[:, None] for n in zip(*[(level.rows, level.chunks) for level in levels], strict=True))
    chunk = lambda row: jnp.clip(jnp.floor(row / rows), 0, chunks - 1).astype(jnp.int32)
    first = chunk(jnp.floor(by_tile.min(axis=(3, 5))))  # (B, M, levels, tiles)
    last = chunk(jnp.floor(by_tile.max(axis=(3, 5))) + 1)
    bounds = jnp.stack([first, last], axis=3)
    return bounds.reshape(*bounds.shape[:2], -1, bounds.shape[-1])


def _maps(values: jax.Array, levels: list[Level]) -> list[jax.Array]:
    """Values (B, N, M, D) -> for each level (B, M, chunks, D, depth), padded with zeros at the right and below."""
    b, _, m, d = values.shape
    maps, start = [], 0
    for level in levels:
        x = values[:, start : start + level.h * level.w].reshape(b, level.h, level.w, m, d)
        start += level.h * level.w
        below, right = level.chunks * level.rows - level.h, level.padded_width - level.w
        x = jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0), (0, 0)))
        x = x.reshape(b, level.chunks, level.depth, m, d)
        maps.append(x.transpose(0, 3, 1, 4, 2))  # (B, chunks, depth, M, D) -> (B, M, chunks, D, depth)
    return maps


def _tokens(maps: list[jax.Array], levels: list[Level]) -> jax.Array:
    """The inverse of `_maps`."""
    tokens = []
    for x, level in zip(maps, levels, strict=True):
        b, m, chunks, d, _ = x.shape
        x = x.transpose(0, 2, 4, 1, 3).reshape(b, chunks * level.rows, level.padded_width, m, d)
        tokens.append(x[:, : level.h, : level.w].reshape(b, level.h * level.w, m, d))
    return jnp.concatenate(tokens, axis=1)


# The kernels


def _call(body, arguments, **call):
    """`body` for each image, head and tile of queries. `arguments`: a `_Queries`' arrays, maps, arrays (B, M, D, Q)."""
    bounds, *samples = arguments[:4]
    specs = [pl.BlockSpec((1, 1, *bounds.shape[2:]), lambda b, m, _: (b, m, 0, 0), memory_space=pltpu.SMEM)]
    specs += [_tile_spec(*x.shape[2:4]) for x in samples]
    specs += [_map_spec(x) if x.ndim == 5 else _tile_spec(x.shape[2]) for x in arguments[4:]]
    # A head's maps, and their gradients, stay in fast memory while its tiles pass; the next head's come meanwhile.
    maps = sum(4 * int(np.prod(x.shape[2:])) for x in arguments[4:] if x.ndim == 5)

    def run(*arguments, interpret):
        return pl.pallas_call(
            body,
            grid=(*samples[0].shape[:2], samples[0].shape[-1] // TILE),
            in_specs=specs,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=4 * maps + 2**24
            ),
            interpret=interpret,
            **call,
        )(*arguments)

    # Without a TPU the kernel is emulated.
    kernel, emulation = (functools.partial(run, interpret=interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(*arguments, tpu=kernel, default=emulation)


def _map_spec(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, m, _: (b, m, 0, 0, 0))


def _tile_spec(*sizes: int) -> pl.BlockSpec:
    """Of an array (B, M, *sizes, Q)."""
    return pl.BlockSpec((1, 1, *sizes, TILE), lambda b, m, q: (b, m, *[0] * len(sizes), q))


def _sample_kernel(levels, bounds, x, y, weights, *others):
    maps, out, matrices = others[: len(levels)], others[len(levels)], others[len(levels) + 1 :]
    total = jnp.zeros(out.shape[2:], jnp.float32)  # (D, TILE)
    # The matrix unit answers late: a chunk's product is taken while the next one's matrix is formed.
    waiting = lambda: 0.0
    for i, level in enumerate(levels):
        first, last = _bounds(bounds, i)
        near_x = [_near(distance) for distance in _distances_x(x[0, 0, i], level)]

        def form(chunk, i=i, level=level, near_x=near_x):
            near_y = [weights[0, 0, i] * _near(distance) for distance in _distances_y(y[0, 0, i], chunk, level)]
            matrices[i][...] = _matrix(near_y, near_x).astype(out.dtype)  # (depth, TILE)

        def multiply(chunk, i=i):
            return _product(maps[i][0, 0, chunk], matrices[i][...], (1, 0))

        def step(chunk, total, form=form, multiply=multiply):
            total = total + multiply(chunk - 1)
            form(chunk)
            return total

        total = total + waiting()
        form(first)
        total = jax.lax.fori_loop(first + 1, last + 1, step, total)
        waiting = functools.partial(multiply, last)
    out[0, 0] = (total + waiting()).astype(out.dtype)


def _gradient_kernel(levels, bounds, x, y, weights, *others):
    maps, others = others[: len(levels)], others[len(levels) :]
    gradient, *by_sample = others[:4]
    map_gradients = others[4:]

    @pl.when(pl.program_id(QUERIES) == 0)
    def _():
        for each in map_gradients:
            each[...] = jnp.zeros(each.shape, each.dtype)

    for i, level in enumerate(levels):
        samples = x[0, 0, i], y[0, 0, i], weights[0, 0, i]
        results = _level_gradients(level, _bounds(bounds, i), *samples, gradient[0, 0], maps[i], map_gradients[i])
        for out, result in zip(by_sample, results, strict=True):
            out[0, 0, i] = result


def _level_gradients(level, bounds, x, y, weights, gradient, values, values_gradient):
    """Gradients of x, y and weights, all (P, TILE), from that of the output (D, TILE); adds to `values_gradient`."""
    distances_x = _distances_x(x, level)
    near_x, slope_x = ([function(distance) for distance in distances_x] for function in (_near, _slope))

    def step(chunk, totals):
        distances_y = _distances_y(y, chunk, level)
        matrix = _matrix([weights * _near(distance) for distance in distances_y], near_x).astype(gradient.dtype)
        values_gradient[0, 0, chunk] += _product(gradient, matrix, (1, 1))  # (D, depth)
        by_pixel = _product(values[0, 0, chunk], gradient, (0, 0))  # (depth, TILE), gradient of the matrix
        by_pixel = by_pixel.reshape(level.rows, level.padded_width, TILE)
        by_x, by_y, by_weight = totals
        for row, distance in zip(by_pixel, distances_y, strict=True):
            along = lambda factors, row=row: jnp.concatenate([(row * f).sum(axis=0, keepdims=True) for f in factors])
            value, slope = along(near_x), along(slope_x)  # (P, TILE), of the samples' row and along it
            by_x += _near(distance) * slope
            by_y += _slope(distance) * value
            by_weight += _near(distance) * value
        return by_x, by_y, by_weight

    first, last = bounds
    by_x, by_y, by_weight = jax.lax.fori_loop(first, last + 1, step, (jnp.zeros(x.shape, jnp.float32),) * 3)
    return weights * by_x, weights * by_y, by_weight


def _bounds(bounds, level: int):
    """First and last chunk of a level for this tile."""
    tile = pl.program_id(QUERIES)
    return bounds[0, 0, 2 * level, tile], bounds[0, 0, 2 * level + 1, tile]


def _distances_x(x, level):
    """Of each point, x (P, TILE), to each column: P arrays (padded_width, TILE)."""
    columns = jax.lax.broadcasted_iota(jnp.int32, (level.padded_width, TILE), 0).astype(jnp.float32)
    return [x[point : point + 1] - columns for point in range(x.shape[0])]


def _distances_y(y, chunk, level):
    """Of all points, y (P, TILE), to each row of a chunk: as many arrays (P, TILE)."""
    return [y - (chunk * level.rows + row).astype(jnp.float32) for row in range(level.rows)]


def _matrix(near_y, near_x):
    """The matrix A of a chunk, (depth, TILE), from how near the points are to each row and to each column."""
    rows = [sum(near[point : point + 1] * columns for point, columns in enumerate(near_x)) for near in near_y]
    return jnp.concatenate(rows)


def _near(distance):
    return jnp.maximum(1 - jnp.abs(distance), 0)


def _slope(distance):
    """Derivative of `_near`; at whole numbers that from the right, as of interpolation by floor."""
    return jnp.where((distance >= -1) & (distance < 1), jnp.where(distance < 0, 1.0, -1.0), 0.0)


def _product(a, b, contracted):
    """Product over one axis of each, in float32 exactly if both are float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
