"""Selection of the largest or the least certain values of each row."""

import functools

import jax
import jax.numpy as jnp

from fasseg_jax.runtime.distributed import on_each_device

__all__ = ["most_uncertain"]


def top_places(scores: jax.Array, k: int) -> jax.Array:
    """Places of the k largest scores of each image, the largest first: (B, N) -> (B, k) int32."""
    return on_each_device(lambda scores: jax.lax.top_k(scores, k)[1])(scores)


def most_uncertain(logits: jax.Array, count: int) -> jax.Array:
    """Places of the `count` values nearest to zero in each row of (N, P) float32: (N, count) int32, ascending.

    Of equal magnitudes the first come first; NaN counts as the largest. The threshold is found by bisection over the
    bits of the magnitudes, whose order as integers is the same: a sort of such rows takes ten times longer.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(logits), jnp.uint32)
    # Each turn is some programs more to start on a GPU, and some comparisons less to make on a CPU.
    by_turns_of = lambda digit: functools.partial(value_of_rank, rank=count, digit=digit)
    threshold = jax.lax.platform_dependent(bits, cuda=by_turns_of(4), rocm=by_turns_of(4), default=by_turns_of(1))

    def first_of_equals():
        below, equal = bits < threshold, bits == threshold
        return below | (equal & (running_count(equal) <= count - below.sum(axis=-1, keepdims=True)))

    kept = bits <= threshold
    kept = jax.lax.cond((kept.sum(axis=-1) > count).any(), first_of_equals, lambda: kept)
    rank = jnp.where(kept, running_count(kept) - 1, count)  # (N, P)
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    fill = lambda rank: jnp.zeros(count + 1, jnp.int32).at[rank].set(places, mode="promise_in_bounds")
    return jax.vmap(fill)(rank)[:, :count]  # the last place took those not kept


def value_of_rank(bits: jax.Array, rank: int, digit: int) -> jax.Array:
    """The `rank`-th smallest value of each row of (N, P) uint32, (N, 1), found `digit` bits a turn from the highest.

    It is the largest number that fewer than `rank` values are below.
    """

    def add_digit(i, threshold):
        shift = (32 - digit * (i + 1)).astype(jnp.uint32)
        higher = threshold + (jnp.arange(1, 2**digit, dtype=jnp.uint32) << shift)  # (N, 2**digit - 1)
        # Counted in float32, exact up to 2**24, which a CPU does half as fast again as in int32.
        below = (bits[:, None] < higher[..., None]).sum(axis=-1, dtype=jnp.float32)
        return threshold + ((below < rank).sum(axis=-1, keepdims=True, dtype=jnp.uint32) << shift)

    return jax.lax.fori_loop(0, 32 // digit, add_digit, jnp.zeros_like(bits[:, :1]))


def running_count(chosen: jax.Array, block: int = 64) -> jax.Array:
    """Cumulative sums of rows (N, P) of bool, int32, in blocks: within each a fast product with a triangular matrix."""
    n, p = chosen.shape
    blocks = jnp.pad(chosen, ((0, 0), (0, -p % block))).reshape(-1, block).astype(jnp.float32)
    within = (blocks @ jnp.triu(jnp.ones((block, block)))).reshape(n, -1, block)  # (N, blocks, block)
    totals = within[..., -1]
    before = jnp.cumsum(totals, axis=-1) - totals
    return (within + before[..., None]).reshape(n, -1)[:, :p].astype(jnp.int32)
