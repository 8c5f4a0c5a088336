"""Kernels for TPUs: the value of a rank, bit by bit, and the chosen values of each row, side by side.

`selection.value_of_rank` and `selection.compact_by_moves` pass over the values once for each bit. XLA reads them from
the chip's memory in every pass; the kernels keep eight rows in fast memory for all passes. By the compiler's estimates
they take a fifth and a tenth of the time.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int32, UInt32

from fasseg_jax.ops.pallas_tpu import compiled_or_emulated

__all__ = ["AT_ONCE", "BITS", "LANES", "LARGEST_ROWS", "compact", "value_of_rank"]

BITS = 31  # of a magnitude, whose sign is 0; so they are compared as int32
SUBLANES, LANES = 8, 128  # of a register
LARGEST_ROWS = 4 * 38_400  # numbers in a row of all arrays that `compact` moves; eight such rows fit a TPU v4's 16 MiB
AT_ONCE = 6  # registers of each array whose values move together; the compiler overlaps their loads and stores


def value_of_rank(magnitudes: UInt32[Array, "N P"], rank: int) -> UInt32[Array, "N 1"]:
    """The `rank`-th smallest of each row, of numbers below 2**31."""
    n, p = magnitudes.shape
    values = jax.lax.bitcast_convert_type(magnitudes, jnp.int32)
    largest = np.iinfo(np.int32).max  # never below a candidate
    values = jnp.pad(values, ((0, -n % SUBLANES), (0, -p % LANES)), constant_values=largest)
    rows, columns = values.shape

    def run(values, interpret):
        return pl.pallas_call(
            functools.partial(_rank_kernel, rank),
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


def _rank_kernel(rank, values, out):
    """Eight rows: the largest number that fewer than `rank` values are below, from its highest bit to its lowest."""

    def add_bit(step, found):
        candidate = found + (jnp.int32(1) << (BITS - 1 - step))
        below = (values[...] < candidate).astype(jnp.float32).sum(axis=1, keepdims=True)  # exact up to 2**24
        return jnp.where(below < rank, candidate, found)

    found = jax.lax.fori_loop(0, BITS, add_bit, jnp.zeros((SUBLANES, 1), jnp.int32))
    out[...] = jnp.broadcast_to(found, out.shape)


def compact(
    distance: Int32[Array, "N P"], arrays: Sequence[Float[Array, "N P"]], count: int
) -> list[Float[Array, "N {count}"]]:
    """The first `count` places of each row after every value has moved to the left by its distance.

    A distance of 0 stands for what may be overwritten, too. `selection.compact_by_moves` says why no two values meet.
    """
    n, p = distance.shape
    padding = (0, -n % SUBLANES), (0, -p % (LANES * AT_ONCE))
    padded = [jnp.pad(x, padding) for x in (distance, *arrays)]
    rows, columns = padded[0].shape
    kept = count + -count % LANES

    def run(*padded, interpret):
        return pl.pallas_call(
            functools.partial(_compact_kernel, (p - count).bit_length(), len(padded)),
            grid=(rows // SUBLANES,),
            in_specs=[pl.BlockSpec((SUBLANES, columns), lambda i: (i, 0)) for _ in padded],
            out_specs=[pl.BlockSpec((SUBLANES, kept), lambda i: (i, 0)) for _ in arrays],
            out_shape=[jax.ShapeDtypeStruct((rows, kept), x.dtype) for x in arrays],
            # One register more than the rows have, from which nothing moves.
            scratch_shapes=[pltpu.VMEM((SUBLANES, columns + LANES), x.dtype) for x in padded],
            compiler_params=pltpu.CompilerParams(vmem_limit_bytes=5 * 4 * len(padded) * SUBLANES * columns + 2**24),
            interpret=interpret,
            name=f"compact_{columns}_at_{SUBLANES * kept}",  # benchmarks look for this name
        )(*padded)

    return [values[:n, :count] for values in compiled_or_emulated(run, *padded)]


def _compact_kernel(bits, num_arrays, *refs):
    """Eight rows, in place: a register takes only what is to the right of it, which has not changed yet."""
    arrays, out, work = refs[:num_arrays], refs[num_arrays : 2 * num_arrays - 1], refs[2 * num_arrays - 1 :]
    columns = arrays[0].shape[1]
    last = columns // LANES  # the register from which nothing moves
    for array, place in zip(arrays, work, strict=True):
        place[:, :columns] = array[...]
        place[:, columns:] = jnp.zeros((SUBLANES, LANES), place.dtype)
    lane = jax.lax.broadcasted_iota(jnp.int32, (SUBLANES, LANES), 1)

    def lanes(register):
        return pl.ds(pl.multiple_of(register * LANES, LANES), LANES)

    def load(register):
        return [place[:, lanes(register)] for place in work]

    def from_right(first, step):
        """What is `step` lanes to the right of `AT_ONCE` registers."""
        if step >= LANES:
            return [load(jnp.minimum(first + i + step // LANES, last)) for i in range(AT_ONCE)]
        rotated = [[pltpu.roll(x, LANES - step, axis=1) for x in load(first + i)] for i in range(AT_ONCE + 1)]
        return [
            [jnp.where(lane < LANES - step, *pair) for pair in zip(*pairs, strict=True)]
            for pairs in itertools.pairwise(rotated)
        ]

    for step in (2**bit for bit in range(bits)):

        def move(turn, _, step=step):
            first = turn * AT_ONCE
            moved = []
            for right, own in zip(from_right(first, step), [load(first + i) for i in range(AT_ONCE)], strict=True):
                arrives, moves = ((distance & step) != 0 for distance in (right[0], own[0]))
                stays = [jnp.where(moves, 0, own[0]), *own[1:]]
                moved.append([jnp.where(arrives, *pair) for pair in zip(right, stays, strict=True)])
            for i, values in enumerate(moved):
                for place, value in zip(work, values, strict=True):
                    place[:, lanes(first + i)] = value

        jax.lax.fori_loop(0, last // AT_ONCE, move, None)
    for values, place in zip(out, work[1:], strict=True):
        values[...] = place[:, : values.shape[1]]
