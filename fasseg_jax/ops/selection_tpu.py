"""The value of a rank, bit by bit, by one kernel for TPUs.

`selection.value_of_rank` passes over the values once for each bit. XLA reads them from the chip's memory in every pass;
the kernel keeps eight rows in fast memory for all passes, a fifth of the time by the compiler's estimate.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, UInt32

from fasseg_jax.ops.pallas_tpu import compiled_or_emulated

__all__ = ["BITS", "value_of_rank"]

BITS = 31  # of a magnitude, whose sign is 0; so they are compared as int32
SUBLANES, LANES = 8, 128  # of a register


def value_of_rank(magnitudes: UInt32[Array, "N P"], rank: int) -> UInt32[Array, "N 1"]:
    """The `rank`-th smallest of each row, of numbers below 2**31."""
    n, p = magnitudes.shape
    values = jax.lax.bitcast_convert_type(magnitudes, jnp.int32)
    largest = np.iinfo(np.int32).max  # never below a candidate
    values = jnp.pad(values, ((0, -n % SUBLANES), (0, -p % LANES)), constant_values=largest)
    rows, columns = values.shape

    def run(values, interpret):
        return pl.pallas_call(
            functools.partial(_kernel, rank),
            grid=(rows // SUBLANES,),
            in_specs=[pl.BlockSpec((SUBLANES, columns), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((SUBLANES, LANES), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((rows, LANES), jnp.int32),
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=4 * 4 * SUBLANES * columns + 2**24),
            interpret=interpret,
            name=f"value_of_rank_{columns}_at_{SUBLANES * LANES}",  # benchmarks look for this name
        )(values)

    found = compiled_or_emulated(run, values)[:n, :1]
    return jax.lax.bitcast_convert_type(found, jnp.uint32)


def _kernel(rank, values, out):
    """Eight rows: the largest number that fewer than `rank` values are below, from its highest bit to its lowest."""

    def add_bit(step, found):
        candidate = found + (jnp.int32(1) << (BITS - 1 - step))
        below = (values[...] < candidate).astype(jnp.float32).sum(axis=1, keepdims=True)  # exact up to 2**24
        return jnp.where(below < rank, candidate, found)

    found = jax.lax.fori_loop(0, BITS, add_bit, jnp.zeros((SUBLANES, 1), jnp.int32))
    out[...] = jnp.broadcast_to(found, out.shape)
