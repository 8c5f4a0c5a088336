"""Deformable sampling as matmuls, for TPUs, whose matrix units are fast and whose gathers of rows are slow.

Computes the same as `reference.deformable_sample`. The difference: bilinear interpolation weights pixel (i, j) by
hat(x - j) * hat(y - i), where hat(t) = max(0, 1 - |t|). A tile of queries thus reads a level through a matrix
A (pixels, queries) of A[(i, j), q] = sum_p weight_p(q) hat(y_p(q) - i) hat(x_p(q) - j), and its output is values^T A.
The kernels of `tpu_kernels.py` form A in the chip's fast memory, a chunk of a few rows of pixels at a time, multiply by
it at once and never store it. They visit only the chunks between the tile's highest and lowest sample, because all
other weights are zero: usually few, as offsets are small, but any offset gives the right result. The derivative is
matmuls too.

XLA divides no kernel among devices, and JAX's custom partitioning does not work on TPUs (jax-ml/jax, issue 38196). The
arrays must therefore lie on one device, or each device calls this for its own images inside `jax.shard_map`, as
`on_each_device` does.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32

from fasseg_jax.ops.deformable import tpu_kernels
from fasseg_jax.ops.deformable.geometry import Shapes, split_levels
from fasseg_jax.ops.deformable.tpu_kernels import TILE, Level
from fasseg_jax.ops.pallas_tpu import compiled_or_emulated

__all__ = ["chunk_bounds", "sample", "sample_gradients"]

SUBLANES = 8  # rows of a vector register; widths are padded to multiples of it
DEPTH = 256  # pixels of a chunk, about: two passes of the matrix unit, enough work to hide its latency


@functools.partial(jax.jit, static_argnames="shapes")  # traced once for all layers
def sample(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    shapes: Shapes,
) -> Float[Array, "B Q M D"]:
    """`deformable_sample` by matmuls."""
    levels, q = _levels(shapes), locations.shape[1]
    samples, maps = _samples(locations, weights, levels), _maps(values, shapes, levels)
    b, m, d = values.shape[0], values.shape[2], values.shape[3]
    out = _call(
        functools.partial(tpu_kernels.sample, levels),
        (*samples, *maps),
        out_specs=_tile_spec(d),
        out_shape=jax.ShapeDtypeStruct((b, m, d, samples.weights.shape[-1]), values.dtype),
        scratch_shapes=[pltpu.VMEM((level.depth, TILE), values.dtype) for level in levels],
        name="deformable_sample",
    )
    return out[..., :q].transpose(0, 3, 1, 2)  # (B, M, D, Q) -> (B, Q, M, D)


@functools.partial(jax.jit, static_argnames="shapes")
def sample_gradients(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    grad_out: Float[Array, "B Q M D"],
    shapes: Shapes,
) -> tuple[Float[Array, "B N M D"], Float[Array, "B Q M levels P 2"], Float[Array, "B Q M levels P"]]:
    """Gradients of values, locations and weights."""
    levels, q = _levels(shapes), locations.shape[1]
    samples, maps = _samples(locations, weights, levels), _maps(values, shapes, levels)
    grad_out = grad_out.astype(values.dtype).transpose(0, 2, 3, 1)  # (B, Q, M, D) -> (B, M, D, Q)
    grad_out = jnp.pad(grad_out, ((0, 0), (0, 0), (0, 0), (0, -q % TILE)))
    of_samples = jax.ShapeDtypeStruct(samples.weights.shape, jnp.float32)
    grad_x, grad_y, grad_weights, *grad_maps = _call(
        functools.partial(tpu_kernels.sample_gradients, levels),
        (*samples, *maps, grad_out),
        out_specs=[*[_tile_spec(*of_samples.shape[2:4])] * 3, *map(_map_spec, maps)],
        out_shape=[*[of_samples] * 3, *[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in maps]],
        name="deformable_sample_gradients",
    )
    size = np.array([(level.w, level.h) for level in levels], np.float32)  # from pixels to [0, 1]
    grad_locations = jnp.stack([grad_x, grad_y], axis=-1)[..., :q, :] * size[:, None, None]  # (B, M, levels, P, Q, 2)
    return (
        _tokens(grad_maps, levels).astype(values.dtype),
        grad_locations.transpose(0, 4, 1, 2, 3, 5),  # -> (B, Q, M, levels, P, 2)
        grad_weights[..., :q].transpose(0, 4, 1, 2, 3),  # -> (B, Q, M, levels, P)
    )


def chunk_bounds(locations: Float[Array, "B Q M levels P 2"], shapes: Shapes) -> Int32[Array, "B M bounds tiles"]:
    """Which chunks of each level the kernels visit for samples at `locations`: `_Samples.bounds`."""
    weights = jnp.zeros(locations.shape[:-1])
    return _samples(locations, weights, _levels(shapes)).bounds


# The kernels' inputs. Queries lie along the lanes, so that a pixel's weights fill whole vector registers and no value
# moves between lanes.


class _Samples(NamedTuple):
    """Samples of all queries, Q padded to whole tiles.

    bounds: int32 (B, M, 2 * levels, tiles), first and last chunk that a tile reads of each level; at least one.
    x, y: float32 (B, M, levels, P, Q), in pixels of the level, whose centers are whole numbers.
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


def _samples(locations: jax.Array, weights: jax.Array, levels: list[Level]) -> _Samples:
    size = np.array([(level.w, level.h) for level in levels], np.float32)  # (levels, xy)
    xy = locations.astype(jnp.float32) * size[:, None] - 0.5
    padding = [(0, 0)] * 4 + [(0, -locations.shape[1] % TILE)]
    # Padded queries repeat the last one, so that no tile visits more rows for them; their weights are zero.
    x, y = (
        jnp.pad(xy[..., i].transpose(0, 2, 3, 4, 1), padding, mode="edge") for i in range(2)
    )  # (B, Q, M, levels, P) -> (B, M, levels, P, Q)
    weights = jnp.pad(weights.astype(jnp.float32).transpose(0, 2, 3, 4, 1), padding)
    return _Samples(_chunk_bounds(y, levels), x, y, weights)


def _chunk_bounds(y: jax.Array, levels: list[Level]) -> jax.Array:
    rows = np.array([level.rows for level in levels])[:, None]
    chunks = np.array([level.chunks for level in levels])[:, None]

    def chunk_of(row):
        return jnp.clip(jnp.floor(row / rows), 0, chunks - 1).astype(jnp.int32)

    of_tiles = y.reshape(*y.shape[:4], -1, TILE)  # (B, M, levels, P, tiles, TILE)
    first = chunk_of(jnp.floor(of_tiles.min(axis=(3, 5))))  # (B, M, levels, tiles)
    last = chunk_of(jnp.floor(of_tiles.max(axis=(3, 5))) + 1)
    bounds = jnp.stack([first, last], axis=3)
    return bounds.reshape(*bounds.shape[:2], -1, bounds.shape[-1])


def _maps(values: jax.Array, shapes: Shapes, levels: list[Level]) -> list[jax.Array]:
    """Values (B, N, M, D) -> for each level (B, M, chunks, D, depth), padded with zeros at the right and below."""
    b, _, m, d = values.shape
    maps = []
    for x, level in zip(split_levels(values, shapes), levels, strict=True):
        x = x.reshape(b, level.h, level.w, m, d)
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


def _call(body, arguments, **call):
    """Run a kernel for each image, head and tile of queries.

    `arguments` are the arrays of `_Samples`, then maps (five axes) and arrays (B, M, D, Q).
    """
    bounds, *samples = arguments[:4]
    specs = [pl.BlockSpec((1, 1, *bounds.shape[2:]), lambda b, m, _: (b, m, 0, 0), memory_space=pltpu.SMEM)]
    specs += [_tile_spec(*x.shape[2:4]) for x in samples]
    specs += [_map_spec(x) if x.ndim == 5 else _tile_spec(x.shape[2]) for x in arguments[4:]]
    # A head's maps and their gradients stay in fast memory for all its tiles; the next head's are loaded meanwhile.
    map_bytes = sum(4 * int(np.prod(x.shape[2:])) for x in arguments[4:] if x.ndim == 5)

    def run(*arguments, interpret):
        return pl.pallas_call(
            body,
            grid=(*samples[0].shape[:2], samples[0].shape[-1] // TILE),
            in_specs=specs,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=4 * map_bytes + 2**24
            ),
            interpret=interpret,
            **call,
        )(*arguments)

    return compiled_or_emulated(run, *arguments)


def _map_spec(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, *x.shape[2:]), lambda b, m, _: (b, m, 0, 0, 0))


def _tile_spec(*sizes: int) -> pl.BlockSpec:
    """For an array (B, M, *sizes, Q)."""
    return pl.BlockSpec((1, 1, *sizes, TILE), lambda b, m, q: (b, m, *[0] * len(sizes), q))
