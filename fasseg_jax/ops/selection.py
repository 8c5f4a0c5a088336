"""Selection of the largest, the first largest, or the least certain values.

They compute the same as in `reference.py`. The differences: `top_indices` stays on the device of each image, and
`most_uncertain` finds a threshold bit by bit where a sort would take ten times longer.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from fasseg_jax.runtime.distributed import on_each_device

__all__ = ["compact", "first_argmax", "most_uncertain", "top_indices", "uncertainty_weights"]


def top_indices(scores: Float[Array, "B N"], k: int) -> Int[Array, "B {k}"]:
    """Indices of the k largest scores of each image, the largest first."""

    def top_k(scores):
        return jax.lax.top_k(scores, k)[1]

    return on_each_device(top_k)(scores)


def first_argmax(scores: Float[Array, "..."], axis: int) -> Int[Array, "..."]:
    """Index of the largest score along an axis, the first of equals.

    Two plain reductions: on a CPU five times faster than `jnp.argmax`.
    """
    largest = scores.max(axis=axis, keepdims=True)
    index = jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis % scores.ndim)
    return jnp.where(scores == largest, index, scores.shape[axis]).min(axis=axis)


def most_uncertain(logits: Float[Array, "N P"], count: int) -> Bool[Array, "N P"]:
    """Choose the `count` logits nearest to zero in each row.

    The first of equal magnitudes win; NaN counts as the largest magnitude. For example the two of
    [3.0, -0.5, 2.0, 0.5, -0.5] are the second and the fourth: the threshold is 0.5, three magnitudes equal it, and the
    first two win.
    """
    magnitudes, threshold = _magnitudes_and_threshold(logits, count)

    def first_of_equals():
        below, equal = magnitudes < threshold, magnitudes == threshold
        return below | (equal & (running_count(equal) <= count - below.sum(axis=-1, keepdims=True)))

    chosen = magnitudes <= threshold
    return jax.lax.cond((chosen.sum(axis=-1) > count).any(), first_of_equals, lambda: chosen)


def compact(
    chosen: Bool[Array, "N P"], arrays: Sequence[Float[Array, "N P"]], count: int
) -> list[Float[Array, "N {count}"]]:
    """The values of each array that are chosen, in their order. Every row chooses `count` values.

    A TPU gathers and scatters numbers one by one, so there a kernel moves them, as `compact_by_moves` does.
    """
    by_kernel, by_gathers = (functools.partial(f, count=count) for f in (compact_by_kernel, compact_by_gathers))
    return jax.lax.platform_dependent(chosen, list(arrays), tpu=by_kernel, default=by_gathers)


def compact_by_gathers(chosen: jax.Array, arrays: list[jax.Array], count: int) -> list[jax.Array]:
    """`compact` by the indices of what is chosen."""
    indices = _indices_of(chosen, count)
    return [jnp.take_along_axis(values, indices, axis=1, mode="promise_in_bounds") for values in arrays]


def compact_by_moves(chosen: jax.Array, arrays: list[jax.Array], count: int) -> list[jax.Array]:
    """`compact` by moving the chosen values to the left: by one place, then by two, by four and so on.

    A value moves in a step if its distance has the step's bit. No two meet (Warren, "Hacker's Delight", section 7-4):
    between any two that are chosen, the distance grows by no more than the places between them. What stays behind, and
    what was not chosen, has the distance 0. It never moves, and others may take its place.
    """
    distance = _distances(chosen)
    for step in (2**bit for bit in range((chosen.shape[1] - count).bit_length())):
        moves, (right, *others) = (distance & step) != 0, (_from_right(x, step) for x in (distance, *arrays))
        arrives = (right & step) != 0
        arrays = [jnp.where(arrives, other, values) for other, values in zip(others, arrays, strict=True)]
        distance = jnp.where(arrives, right, jnp.where(moves, 0, distance))
    return [values[:, :count] for values in arrays]


def compact_by_kernel(chosen, arrays, count):
    """The same by one kernel for TPUs, if rows of all arrays fit into their fast memory."""
    from fasseg_jax.ops import selection_tpu  # Pallas takes a third of a second to import

    if (1 + len(arrays)) * chosen.shape[1] > selection_tpu.LARGEST_ROWS:
        return compact_by_moves(chosen, arrays, count)
    return selection_tpu.compact(_distances(chosen), arrays, count)


def _distances(chosen: jax.Array) -> jax.Array:
    """How far to the left each chosen value belongs; 0 for the others: (N, P)."""
    return jnp.where(chosen, jnp.arange(1, chosen.shape[1] + 1) - running_count(chosen), 0)


def _from_right(values: jax.Array, step: int) -> jax.Array:
    """For each place of (N, P) what is `step` places to the right of it; zero at the end."""
    return jnp.pad(values[:, step:], ((0, 0), (0, step)))


def uncertainty_weights(logits: Float[Array, "N P"], count: int) -> Float[Array, "N P"]:
    """1 for the `count` logits nearest to zero in each row, 0 for the others.

    Equal magnitudes at the threshold share what is left. For example the two of [3.0, -0.5, 2.0, 0.0, 0.5] are
    [0, 0.5, 0, 1, 0.5]. NaN counts as the largest magnitude.
    """
    magnitudes, threshold = _magnitudes_and_threshold(logits, count)
    below, equal = ((magnitudes < threshold).astype(jnp.float32), (magnitudes == threshold).astype(jnp.float32))
    num_below, num_equal = (x.sum(axis=-1, keepdims=True) for x in (below, equal))
    return below + equal * ((count - num_below) / jnp.maximum(num_equal, 1))  # none is equal if `count` is 0


def _magnitudes_and_threshold(logits, count):
    """Numbers in the order of the logits' magnitudes (N, P), and the `count`-th smallest of each row (N, 1).

    Magnitudes of float32 are in the same order as their bits, read as integers, which is what `value_of_rank` needs.
    """
    magnitudes = jax.lax.bitcast_convert_type(jnp.abs(logits), jnp.uint32)
    # Few bits per step mean fewer comparisons (fast on CPU); many bits mean fewer kernel launches (fast on GPU).
    on_cpu = functools.partial(value_of_rank, rank=count, bits_per_step=1, count=counts_below)
    on_gpu = functools.partial(value_of_rank, rank=count, bits_per_step=4, count=packed_counts_below)
    on_tpu = functools.partial(_value_of_rank_by_kernel, rank=count)
    threshold = jax.lax.platform_dependent(magnitudes, cuda=on_gpu, rocm=on_gpu, tpu=on_tpu, default=on_cpu)
    return magnitudes, threshold


def _value_of_rank_by_kernel(magnitudes, rank):
    from fasseg_jax.ops.selection_tpu import value_of_rank  # Pallas takes a third of a second to import

    return value_of_rank(magnitudes, rank)


def _indices_of(chosen, count):
    """Indices of the `count` values that each row of (N, P) has chosen: (N, count)."""
    target = jnp.where(chosen, running_count(chosen) - 1, count)  # (N, P); the others all go to one more element
    indices = jnp.arange(chosen.shape[-1], dtype=jnp.int32)

    def scatter(target):
        return jnp.zeros(count + 1, jnp.int32).at[target].set(indices, mode="promise_in_bounds")

    return jax.vmap(scatter)(target)[:, :count]


def value_of_rank(
    values: UInt32[Array, "N P"],
    rank: int,
    bits_per_step: int,
    count: Callable[[jax.Array, jax.Array], jax.Array],
) -> UInt32[Array, "N 1"]:
    """The `rank`-th smallest value of each row, found from its highest bits to its lowest.

    It is the largest number that fewer than `rank` values are below. For example the second smallest of [4, 6, 7] is
    found by single bits (of the lowest three) as 0b000 -> 0b100 (no value is below 4) -> 0b110 (one value is below 6)
    -> 0b110 (two values are below 7, too many).
    """

    def add_bits(step, threshold):
        shift = (32 - bits_per_step * (step + 1)).astype(jnp.uint32)
        candidates = threshold + (jnp.arange(1, 2**bits_per_step, dtype=jnp.uint32) << shift)  # (N, 2**bits - 1)
        fits = count(values, candidates) < rank
        return threshold + (fits.sum(axis=-1, keepdims=True, dtype=jnp.uint32) << shift)

    return jax.lax.fori_loop(0, 32 // bits_per_step, add_bits, jnp.zeros_like(values[:, :1]))


def counts_below(values: UInt32[Array, "N P"], candidates: UInt32[Array, "N c"]) -> Float[Array, "N c"]:
    """How many values of each row are below each of its candidates."""
    # Counts of 16 bits, beside each other: XLA compares and counts in one loop, without an array of what is below. The
    # block is no power of two, whose rows would fall upon each other in the cache. Float32 is exact up to 2**24.
    n, block = len(values), 1344
    values = _pad_with_largest(values, block).reshape(n, 1, -1, block)
    counts = (values < candidates[..., None, None]).sum(axis=2, dtype=jnp.uint16)  # (N, c, block)
    return counts.sum(axis=-1, dtype=jnp.float32)


def packed_counts_below(values: UInt32[Array, "N P"], candidates: UInt32[Array, "N c"]) -> Float[Array, "N c"]:
    """The same, with four counts of eight bits in each word: a GPU reads a value once for four candidates."""
    n, c, block = len(values), candidates.shape[1], 224  # values of a count, which eight bits can hold
    values = _pad_with_largest(values, block).reshape(n, 1, -1, block)
    candidates = jnp.pad(candidates, ((0, 0), (0, -c % 4))).reshape(n, -1, 4, 1, 1)
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)
    below = [(values < candidates[:, :, i]).astype(jnp.uint32) << shifts[i] for i in range(4)]
    words = functools.reduce(jnp.bitwise_or, below).sum(axis=-1)[:, :, None]  # (N, c / 4, 1, blocks)
    counts = (words >> shifts[:, None]) & 255  # (N, c / 4, 4, blocks)
    return counts.sum(axis=-1, dtype=jnp.float32).reshape(n, -1)[:, :c]


def _pad_with_largest(values: jax.Array, block: int) -> jax.Array:
    """Rows of whole blocks. What is added is below nothing."""
    return jnp.pad(values, ((0, 0), (0, -values.shape[1] % block)), constant_values=np.uint32(2**32 - 1))


def running_count(chosen: Bool[Array, "N P"]) -> Int[Array, "N P"]:
    """How many of each row are chosen up to each index."""
    return _running_sum(chosen.astype(jnp.float32), levels=2).astype(jnp.int32)


def _running_sum(values: jax.Array, levels: int) -> jax.Array:
    """A cumulative sum in blocks of 64, each by a matmul, and in blocks of their totals.

    Totals of up to 64 are exact in bfloat16, to which a TPU rounds the factors. Those of further levels are not.
    """
    if levels == 0:
        return jnp.cumsum(values, axis=-1)
    (n, p), block = values.shape, 64
    blocks = jnp.pad(values, ((0, 0), (0, -p % block))).reshape(-1, block)
    within = (blocks @ jnp.triu(jnp.ones((block, block)))).reshape(n, -1, block)  # (N, blocks, block)
    totals = within[..., -1]
    before = _running_sum(totals, levels - 1) - totals
    return (within + before[..., None]).reshape(n, -1)[:, :p]
