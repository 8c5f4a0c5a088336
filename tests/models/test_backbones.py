"""Backbones by themselves. Their values are compared with other libraries in tests/weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.models.backbones import BACKBONES
from tests.helpers.tiny import tiny_config


@pytest.mark.slow
def test_rematerialization_keeps_the_gradients_of_a_vit():
    """Up to rounding of the largest gradient.

    A bound relative to each gradient cannot hold: softmax ignores what is added to all logits of a query, so the true
    gradient of the biases of keys is 0, and what is computed is rounding.
    """
    fields = {name: value for name, value in tiny_config("vit").model.backbone.items() if name != "kind"}
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((1, 64, 64, 3)), jnp.float32)
    shapes = jax.eval_shape(BACKBONES["vit"](**fields).init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)

    def gradients(remat):
        def loss(variables):
            return sum(jnp.sin(x).sum() for x in BACKBONES["vit"](**fields, remat=remat).apply(variables, images))

        return jax.jit(jax.grad(loss))(variables)["params"]

    expected, actual = gradients(False), gradients(True)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for block in ("block0", "block1"):
        queries, keys, values = np.split(np.abs(expected[block]["attention"]["qkv_bias"]), 3)
        assert keys.max() < 1e-6 * largest < queries.max() < values.max()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), actual, expected)
