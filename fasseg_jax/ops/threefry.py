"""JAX's default random numbers, bit for bit, in a form that XLA for CPUs compiles and runs faster.

There JAX writes each hash as a loop. The initialization of a network hashes hundreds of times, and these loops took
half the time of its compilation. Here the rounds stand one after the other, so that XLA fuses them with what follows.
The plain version is `jax.random.key`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Integer, Key, UInt32

__all__ = ["random_key"]

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # bits, of even and odd groups of rounds
PARITY = np.uint32(0x1BD11BDA)


def random_key(seed: int) -> Key[Array, ""]:
    """A key from which `jax.random` draws what it draws from `jax.random.key(seed)`.

    An array has fewer than 2^32 numbers, of 32 bits; other widths raise a `NotImplementedError`.
    """
    return jax.random.key(seed, impl=UNROLLED)


def _hash(
    key: UInt32[Array, "2"], high: UInt32[Array, "..."], low: UInt32[Array, "..."]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Threefry-2x32 of 20 rounds (Salmon et al., 2011, section 4.1): two words of each two words."""
    keys = key[0], key[1], key[0] ^ key[1] ^ PARITY
    high, low = high + keys[0], low + keys[1]
    for group in range(5):
        for bits in ROTATIONS[group % 2]:
            high = high + low
            low = high ^ (low << bits | low >> (32 - bits))
        high = high + keys[(group + 1) % 3]
        low = low + keys[(group + 2) % 3] + np.uint32(group + 1)
    return high, low


def _fold_in(key: UInt32[Array, "2"], number: Integer[Array, ""] | int) -> UInt32[Array, "2"]:
    return jnp.stack(_hash(key, jnp.uint32(0), jnp.asarray(number, jnp.uint32)))


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "... 2"]:
    return jnp.stack(_hash(key, jnp.uint32(0), _count(shape)), axis=-1)


def _random_bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> Array:
    if width != 32:
        raise NotImplementedError(f"random numbers of {width} bits; here all have 32")
    high, low = _hash(key, jnp.uint32(0), _count(shape))
    return high ^ low


def _count(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    return jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)


UNROLLED = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="fry-unrolled",
)
