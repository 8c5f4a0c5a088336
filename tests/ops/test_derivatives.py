"""Operations with hand-written derivatives: against PyTorch, against their plain versions, and what they save."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from fasseg_jax.ops import reference
from fasseg_jax.ops.activations import gelu_matmul, relu
from fasseg_jax.ops.attention import attend
from fasseg_jax.ops.layer_norm import layer_norm
from tests.helpers.derivatives import assert_equal, values_and_gradients, values_and_gradients_of_pytorch

X = np.random.default_rng(0).standard_normal((2, 7, 5, 12)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((12, 9)).astype(np.float32) / 4
EXTREMES = np.concatenate([3 * X.ravel(), [0, -20, 20]]).astype(np.float32)


def assert_same(ours, plain, theirs, *inputs, atol):
    """Results and gradients of our function, its plain version, and PyTorch's."""
    with jax.default_matmul_precision("highest"):
        found = values_and_gradients(ours, *inputs)
        assert_equal(found, values_and_gradients_of_pytorch(theirs, *inputs), atol)
        assert_equal(found, values_and_gradients(plain, *inputs), atol)


def test_relu():
    assert_same(relu, reference.relu, torch.relu, EXTREMES, atol=1e-6)


def test_gelu():
    def pointwise(function):
        return lambda x: function(x[:, None], jnp.ones((1, 1)))

    def theirs(x):
        return torch.nn.functional.gelu(x)[:, None]

    assert_same(pointwise(gelu_matmul), pointwise(reference.gelu_matmul), theirs, EXTREMES, atol=1e-6)


def test_gelu_matmul():
    def theirs(x, kernel):
        return torch.nn.functional.gelu(x) @ kernel

    assert_same(gelu_matmul, reference.gelu_matmul, theirs, X, KERNEL, atol=3e-5)


def test_attend():
    """Forbidden keys and a row with a single one included; the averaged probabilities have derivatives too."""
    rng = np.random.default_rng(2)
    logits, values = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4, 6), (2, 3, 6, 5)))
    allowed = rng.uniform(size=(2, 1, 4, 6)) > 0.4
    allowed[..., 1] = True
    allowed[0, 0, 0] = np.arange(6) == 1

    def masked(function):
        return lambda logits, values: function(jnp.where(allowed, 20 * logits, -jnp.inf), values)

    def theirs(logits, values):
        probabilities = (20 * logits).masked_fill(torch.tensor(~allowed), -torch.inf).softmax(-1)
        return probabilities @ values, probabilities.mean(1)

    assert_same(masked(attend), masked(reference.attend), theirs, logits, values, atol=2e-5)


def test_layer_norm():
    scale, bias = np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)

    def theirs(x, scale, bias):
        return torch.nn.functional.layer_norm(x, (12,), scale, bias, eps=1e-5)

    assert_same(layer_norm, reference.layer_norm, theirs, 5 * X + 3, scale, bias, atol=1e-5)

    def with_epsilon(function):
        return lambda *inputs: function(*inputs, 0.5)

    def theirs_with_epsilon(x, scale, bias):
        return torch.nn.functional.layer_norm(x, (12,), scale, bias, eps=0.5)

    ours, plain = with_epsilon(layer_norm), with_epsilon(reference.layer_norm)
    assert_same(ours, plain, theirs_with_epsilon, X, scale, bias, atol=1e-5)


def residual_shapes(function, *inputs):
    """Shapes of what the backward pass needs of the forward pass."""
    _, backward = jax.vjp(function, *map(jnp.asarray, inputs))
    return [x.shape for x in jax.tree.leaves(backward) if jnp.ndim(x)]


def test_only_one_array_is_saved():
    """What the hand-written derivatives are for: they save nothing but the inputs (ReLU: the result)."""
    assert residual_shapes(relu, X) == [X.shape]
    assert residual_shapes(gelu_matmul, X, KERNEL) == [X.shape, KERNEL.shape]
    logits, values = np.ones((2, 3, 4, 6), np.float32), np.ones((2, 3, 6, 5), np.float32)
    assert set(residual_shapes(attend, logits, values)) == {logits.shape, (2, 3, 4, 1), values.shape}
    scale = np.ones(12, np.float32)
    saved = residual_shapes(layer_norm, X, scale, scale)
    assert sum(map(np.prod, saved)) == X.size + 2 * X[..., 0].size + X.shape[-1]
