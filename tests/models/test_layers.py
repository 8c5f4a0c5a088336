"""Layers against the plain operations that they stand for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fasseg_jax.models.layers.attention import MultiheadAttention
from fasseg_jax.models.layers.linear import DepthwiseConv, PointwiseConv, torch_linear
from fasseg_jax.models.layers.norms import LayerNorm, batch_norm
from fasseg_jax.models.layers.position_encoding import sine_positions
from fasseg_jax.ops.activations import gelu_product, relu
from fasseg_jax.ops.attention import attend

X = np.random.default_rng(0).standard_normal((2, 7, 5, 12)).astype(np.float32)
KERNEL = np.random.default_rng(1).standard_normal((12, 9)).astype(np.float32) / 4


@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_is_a_1x1_convolution(strides):
    variables = PointwiseConv(8, strides).init(jax.random.key(0), X)
    ours = PointwiseConv(8, strides).apply(variables, X)
    np.testing.assert_allclose(ours, nn.Conv(8, (1, 1), strides).apply(variables, X), atol=1e-5)


def test_depthwise_is_a_grouped_convolution():
    variables = DepthwiseConv().init(jax.random.key(0), X)
    reference = nn.Conv(12, (3, 3), padding=1, feature_group_count=12)
    np.testing.assert_allclose(DepthwiseConv().apply(variables, X), reference.apply(variables, X), atol=1e-5)


def test_frozen_batch_norm():
    norm = batch_norm("frozen_batch_norm", jnp.float32, None)
    rng = np.random.default_rng(1)
    scale, bias, mean, var = rng.uniform(0.5, 2, (4, 12)).astype(np.float32)
    variables = {"batch_stats": {"scale": scale, "bias": bias, "mean": mean, "var": var}}
    expected = (X - mean) / np.sqrt(var + 1e-5) * scale + bias
    for use_running_average in (True, False):  # frozen: training changes nothing
        ours, state = norm.apply(variables, X, use_running_average, mutable=["batch_stats"])
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, state, variables)


def test_batch_norm_uses_batch_statistics_and_keeps_running_ones():
    norm = batch_norm("batch_norm", jnp.float32, None)
    variables = norm.init(jax.random.key(0), X, use_running_average=True)
    assert set(variables["params"]) == {"scale", "bias"}
    ours, state = norm.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
    mean, var = X.mean(axis=(0, 1, 2)), X.var(axis=(0, 1, 2))
    np.testing.assert_allclose(ours, (X - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * var, atol=1e-5)


def assert_derivatives_are_pytorchs(ours, theirs, *inputs, atol):
    """Of all inputs, and of all results weighted by sines; PyTorch computes in float64."""
    ours_out = ours(*inputs)
    weights = [np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape) for y in jax.tree.leaves(ours_out)]
    weighted = lambda outputs: sum((w * y).sum() for w, y in zip(weights, outputs, strict=True))
    gradients = jax.grad(lambda x: weighted(jax.tree.leaves(ours(*x))))(inputs)
    leaves = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in inputs]
    expected = jax.tree.leaves(theirs(*leaves))
    total = sum((torch.tensor(w) * y).sum() for w, y in zip(weights, expected, strict=True))
    for one, other in zip(jax.tree.leaves(ours_out), expected, strict=True):
        np.testing.assert_allclose(one, other.detach(), atol=atol)
    for one, other in zip(gradients, torch.autograd.grad(total, leaves), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


EXTREMES = np.concatenate([3 * X.ravel(), [0, -20, 20]]).astype(np.float32)


def test_relu_is_pytorchs():
    assert_derivatives_are_pytorchs(relu, torch.relu, EXTREMES, atol=1e-6)


def test_gelu_is_pytorchs():
    one = np.ones((1, 1), np.float32)
    assert_derivatives_are_pytorchs(
        lambda x: gelu_product(x[:, None], one), lambda x: torch.nn.functional.gelu(x)[:, None], EXTREMES, atol=1e-6
    )
    theirs = lambda x, kernel: torch.nn.functional.gelu(x) @ kernel
    with jax.default_matmul_precision("highest"):
        assert_derivatives_are_pytorchs(gelu_product, theirs, X, KERNEL, atol=3e-5)


def test_attend_is_softmax_of_pytorch():
    """Forbidden keys and a row with a single one included; the averaged probabilities have derivatives too."""
    rng = np.random.default_rng(2)
    logits, values = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4, 6), (2, 3, 6, 5)))
    allowed = rng.uniform(size=(2, 1, 4, 6)) > 0.4
    allowed[..., 1] = True
    allowed[0, 0, 0] = np.arange(6) == 1

    def ours(logits, values):
        return attend(jnp.where(allowed, 20 * logits, -jnp.inf), values)

    def theirs(logits, values):
        probabilities = (20 * logits).masked_fill(torch.tensor(~allowed), -torch.inf).softmax(-1)
        return probabilities @ values, probabilities.mean(1)

    assert_derivatives_are_pytorchs(ours, theirs, logits, values, atol=2e-5)


def test_layer_norm_is_pytorchs():
    scale, bias = np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)
    ours = lambda x, scale, bias: LayerNorm().apply({"params": {"scale": scale, "bias": bias}}, x)
    theirs = lambda x, scale, bias: torch.nn.functional.layer_norm(x, (12,), scale, bias, eps=1e-5)
    assert_derivatives_are_pytorchs(ours, theirs, 5 * X + 3, scale, bias, atol=1e-5)


def test_activations_in_bfloat16():
    """As in float32 but for the rounding of what goes in and comes out, of derivatives too."""
    params = {"scale": np.full(12, 2, np.float32), "bias": np.ones(12, np.float32)}
    norm = lambda x: LayerNorm(x.dtype).apply({"params": params}, x)
    gelu = lambda x: gelu_product(x, jnp.asarray(KERNEL, x.dtype))
    attention = lambda x: attend((x @ x.swapaxes(-1, -2)).astype(jnp.float32), x)[0]
    both = lambda function, x: (function(x), jax.grad(lambda x: function(x)[..., :5].sum())(x))
    for function in (relu, gelu, norm, attention):
        for one, other in zip(both(function, jnp.asarray(X, jnp.bfloat16)), both(function, X), strict=True):
            assert one.dtype == jnp.bfloat16
            np.testing.assert_allclose(one.astype(np.float32), other, rtol=2e-2, atol=3e-2)


def test_activations_keep_one_array():
    """What the hand-written derivatives are for: nothing is kept but the inputs (ReLU: the result)."""
    shapes_kept = lambda *vjp: [x.shape for x in jax.tree.leaves(jax.vjp(*vjp)[1]) if jnp.ndim(x)]
    assert shapes_kept(relu, jnp.asarray(X)) == [X.shape]
    assert shapes_kept(gelu_product, jnp.asarray(X), jnp.asarray(KERNEL)) == [X.shape, KERNEL.shape]
    logits, values = jnp.ones((2, 3, 4, 6)), jnp.ones((2, 3, 6, 5))
    assert set(shapes_kept(attend, logits, values)) == {logits.shape, (2, 3, 4, 1), values.shape}
    module = LayerNorm()
    variables = module.init(jax.random.key(0), X)
    kept = jax.tree.leaves(jax.vjp(module.apply, variables, jnp.asarray(X))[1])
    assert sum(x.size for x in kept if jnp.ndim(x)) == X.size + 2 * X[..., 0].size + X.shape[-1]


def test_attention():
    """Against a loop over heads and queries in float64."""
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.standard_normal((2, n, 8)) for n in (3, 5, 5))
    allowed = rng.uniform(size=(2, 3, 5)) > 0.4
    allowed[..., 0] = True
    module = MultiheadAttention(num_heads=2)
    variables = module.init(jax.random.key(0), queries, keys, values)
    variables = jax.tree.map(lambda x: np.asarray(rng.standard_normal(x.shape), np.float32), variables)
    output, attention = module.apply(
        variables, *(jnp.asarray(x, jnp.float32) for x in (queries, keys, values)), allowed
    )

    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    projected = [
        x @ p["in_proj_kernel"][:, 8 * i : 8 * i + 8] + p["in_proj_bias"][8 * i : 8 * i + 8]
        for i, x in enumerate((queries, keys, values))
    ]
    expected, mean = np.zeros((2, 3, 8)), np.zeros((2, 3, 5))
    for b, head, q in np.ndindex(2, 2, 3):
        part = slice(4 * head, 4 * head + 4)
        logits = projected[1][b, :, part] @ projected[0][b, q, part] / 2
        weights = np.where(allowed[b, q], np.exp(logits), 0)
        weights /= weights.sum()
        mean[b, q] += weights / 2
        expected[b, q, part] = weights @ projected[2][b, :, part]
    expected = expected @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(output, expected, atol=1e-4)
    np.testing.assert_allclose(attention, mean, atol=1e-5)


def test_sine_positions():
    h, w, c = 3, 4, 8
    expected = np.zeros((h, w, c))
    for i, j, k in np.ndindex(h, w, c):
        coordinate = (i + 1) / (h + 1e-6) if k < c // 2 else (j + 1) / (w + 1e-6)
        pair = k % (c // 2) // 2
        angle = coordinate * 2 * np.pi / 10000 ** (2 * pair / (c // 2))
        expected[i, j, k] = np.cos(angle) if k % 2 else np.sin(angle)
    np.testing.assert_allclose(sine_positions(h, w, c), expected, atol=1e-6)


def test_linear_starts_as_pytorch_does():
    """U(+-1/sqrt(fan_in)), kernel and bias: bounds and variance."""
    params = torch_linear(64, 2000, jnp.float32).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    for value in (params["kernel"], params["bias"]):
        assert np.abs(value).max() <= 1 / 8
        np.testing.assert_allclose(np.var(value), (1 / 8) ** 2 / 3, rtol=0.1)
