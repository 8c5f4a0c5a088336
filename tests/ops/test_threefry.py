"""Random numbers without loops, against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.ops.threefry import random_key


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31 - 1, -1])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 3, 1, 7), (1000, 33)])
def test_bits(seed, shape):
    ours, theirs = random_key(seed), jax.random.key(seed)
    np.testing.assert_array_equal(jax.random.bits(ours, shape), jax.random.bits(theirs, shape))


@pytest.mark.parametrize("number", [0, 1, 2**32 - 1])
def test_derived_keys(number):
    ours, theirs = random_key(3), jax.random.key(3)
    for derive in (
        lambda key: jax.random.fold_in(key, jnp.uint32(number)),
        lambda key: jax.random.split(key, (2, 3)),
        lambda key: jax.random.split(jax.random.fold_in(jax.random.split(key)[1], 7), 2),
    ):
        np.testing.assert_array_equal(jax.random.key_data(derive(ours)), jax.random.key_data(derive(theirs)))


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.uniform(key, (40, 50), minval=-2.0, maxval=3.0),
        lambda key: jax.random.normal(key, (40, 50)),
        lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (40, 50)),
        lambda key: jax.nn.initializers.xavier_uniform()(key, (64, 96)),
        lambda key: jax.nn.initializers.he_normal()(key, (3, 3, 16, 32)),
    ],
)
def test_distributions(draw):
    """Also compiled, where XLA fuses the numbers with what is made of them."""
    ours, theirs = random_key(11), jax.random.key(11)
    np.testing.assert_array_equal(jax.jit(draw)(ours), jax.jit(draw)(theirs))


def test_other_widths_are_refused():
    with pytest.raises(NotImplementedError, match="16 bits"):
        jax.random.bits(random_key(0), (4,), jnp.uint16)
