"""Bilinear samples of many maps by one kernel for TPUs, which gather numbers one by one but multiply matrices fast.

The sample at (row, column) is the sum over all pixels (i, j) of tent(row - i) tent(column - j) map[i, j], where
tent(t) = max(0, 1 - |t|): a matmul over i, then a sum over j. Written for XLA, the weights bound the time. The kernel
forms them in fast memory with one point in each lane, so that a number of a point reaches all its weights for nothing,
and the sum over j adds whole registers.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from fasseg_jax.ops.pallas_tpu import compiled_or_emulated

__all__ = ["sum_of_tents"]

TILE = 16  # rows of a register of bfloat16; heights and widths are padded to multiples of it
SUBLANES, LANES = 8, 128  # of a register of float32
LARGEST = 2**20  # elements of a block's weights and products; a few such arrays fit into fast memory


def sum_of_tents(
    maps: Float[Array, "N h w"], rows: Float[Array, "N P"], columns: Float[Array, "N P"]
) -> Float[Array, "N P"]:
    """Sample each map at points of its own, given in pixels; 0 is the center of the first. A map is zero outside.

    Maps of bfloat16 lose nothing if the rows are whole numbers; else the rows' weights are rounded to bfloat16, too.
    Maps of float32 and their weights are split into two numbers of bfloat16 each, of whose four products the smallest
    is left out: an error of about 2**-16 of the map.
    """
    n, h, w = maps.shape
    count = rows.shape[1]
    maps = jnp.pad(maps, ((0, -n % SUBLANES), (0, -h % TILE), (0, -w % TILE))).transpose(0, 2, 1)  # (N, w, h)
    in_one = maps.dtype == jnp.bfloat16
    if not in_one:
        high = jax.lax.reduce_precision(maps, exponent_bits=8, mantissa_bits=7)  # XLA may leave out a mere conversion
        maps = jnp.concatenate([high, maps - high, high], axis=2).astype(jnp.bfloat16)  # (N, w, 3 h)
    _, width, depth = maps.shape
    fitting = max(LARGEST // (width + depth) // LANES, 1) * LANES
    block = min(fitting, 2048, count + -count % LANES)  # points
    rows, columns = (jnp.pad(x, ((0, -n % SUBLANES), (0, -count % block))) for x in (rows, columns))
    points = pl.BlockSpec((SUBLANES, block), lambda group, first, map: (group, first))

    def run(*arrays, interpret):
        return pl.pallas_call(
            functools.partial(_kernel, in_one),
            grid=(len(maps) // SUBLANES, rows.shape[1] // block, SUBLANES),
            in_specs=[
                pl.BlockSpec((1, width, depth), lambda group, first, map: (group * SUBLANES + map, 0, 0)),
                points,
                points,
            ],
            out_specs=points,
            out_shape=jax.ShapeDtypeStruct(rows.shape, jnp.float32),
            interpret=interpret,
            name=f"sum_of_tents_{width}x{depth}_at_{block}",  # benchmarks look for this name
        )(*arrays)

    return compiled_or_emulated(run, maps, rows, columns)[:n, :count]


def _kernel(in_one, maps, rows, columns, out):
    """One map at a block of its points, which are a row of the blocks for a group of maps."""
    _, width, depth = maps.shape
    own = pl.ds(pl.program_id(2), 1)
    weights = _tent(rows[own, :], depth if in_one else depth // 3)  # (h, P)
    high = weights.astype(jnp.bfloat16)
    if in_one:
        weights = high
    else:
        low = (weights - high.astype(jnp.float32)).astype(jnp.bfloat16)
        weights = jnp.concatenate([high, high, low])  # (3 h, P), beside the maps' high, low and high
    sums = jnp.dot(maps[0], weights, preferred_element_type=jnp.float32)  # (w, P)
    out[own, :] = (_tent(columns[own, :], width) * sums).sum(axis=0, keepdims=True)


def _tent(position: jax.Array, length: int) -> jax.Array:
    """Weights of an axis' pixels for positions (1, P): (length, P)."""
    pixel = jax.lax.broadcasted_iota(jnp.int32, (length, position.shape[1]), 0).astype(jnp.float32)
    return jnp.maximum(1 - jnp.abs(position - pixel), 0)
