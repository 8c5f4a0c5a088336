"""Layers against the plain operations that they stand for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.models.layers.attention import MultiheadAttention
from fasseg_jax.models.layers.image_conv import ImageConv, convolve, convolve_blocks
from fasseg_jax.models.layers.linear import DepthwiseConv, PointwiseConv, torch_linear
from fasseg_jax.models.layers.norms import LayerNorm, batch_norm
from fasseg_jax.models.layers.position_encoding import sine_positions
from fasseg_jax.ops.activations import gelu_matmul, relu
from fasseg_jax.ops.attention import attend
from tests.helpers.lowering import lowered_text

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 5, 12)), jnp.float32)
KERNEL = np.random.default_rng(1).standard_normal((12, 9)).astype(np.float32) / 4


@pytest.mark.parametrize("strides", [1, 2])
def test_pointwise_is_a_1x1_convolution(strides):
    variables = PointwiseConv(8, strides).init(jax.random.key(0), X)
    ours = PointwiseConv(8, strides).apply(variables, X)
    np.testing.assert_allclose(ours, nn.Conv(8, (1, 1), strides).apply(variables, X), atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "padding"), [(7, 2, 3), (4, 4, 0), (16, 16, 0), (3, 2, 1), (5, 4, 2)])
def test_both_ways_to_convolve_images_are_those_of_pytorch(size, stride, padding):
    import torch

    rng = np.random.default_rng(2)
    images = rng.standard_normal((2, 64, 48, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 6)).astype(np.float32) / size
    inputs = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    images, kernel = jnp.asarray(images), jnp.asarray(kernel)
    expected = torch.nn.functional.conv2d(*inputs, stride=stride, padding=padding)
    cotangent = rng.standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.tensor(cotangent))
    for function in (convolve, convolve_blocks):
        found, backward = jax.vjp(lambda kernel, f=function: f(images, kernel, stride, padding), kernel)
        np.testing.assert_allclose(found, expected.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
        (gradient,) = backward(jnp.asarray(cotangent.transpose(0, 2, 3, 1)))
        wanted = inputs[1].grad.numpy().transpose(2, 3, 1, 0)  # sums of up to 3,072 products
        np.testing.assert_allclose(gradient, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(1, 64, 48, 3), (2, 65, 50, 3)])  # the second in no blocks of 2 x 2
def test_image_convolution_is_that_of_flax(shape):
    images = jnp.asarray(np.random.default_rng(3).standard_normal(shape), jnp.float32)
    ours, theirs = ImageConv(6, 7, 2, 3), nn.Conv(6, (7, 7), 2, padding=3)
    variables = theirs.init(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(0), images), variables)
    np.testing.assert_array_equal(ours.apply(variables, images), theirs.apply(variables, images))


def test_tpus_convolve_images_in_blocks():
    images, kernel = (
        jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.bfloat16),
        jax.ShapeDtypeStruct((7, 7, 3, 64), jnp.bfloat16),
    )
    apply = lambda images, kernel: ImageConv(64, 7, 2, 3, use_bias=False).apply({"params": {"kernel": kernel}}, images)
    for platform, window in (("tpu", "4x4x12x64"), ("cpu", "7x7x3x64")):
        text = lowered_text(apply, images, kernel, platform=platform)
        [convolution] = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        assert f"tensor<{window}x" in convolution


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
    unbiased = np.var(X, axis=(0, 1, 2), ddof=1)  # of 70 values: 1.4% more
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 + 0.1 * unbiased, atol=1e-6)
    variables |= state
    _, again = norm.apply(variables, X, use_running_average=False, mutable=["batch_stats"])
    np.testing.assert_allclose(again["batch_stats"]["var"], 0.81 + 0.19 * unbiased, atol=1e-6)
    _, kept = norm.apply(variables, X, use_running_average=True, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, kept, state)


def norm(x):
    params = {"scale": jnp.full(12, 2.0), "bias": jnp.ones(12)}
    return LayerNorm(x.dtype).apply({"params": params}, x)


def gelu(x):
    return gelu_matmul(x, jnp.asarray(KERNEL, x.dtype))


def self_attention(x):
    return attend((x @ x.swapaxes(-1, -2)).astype(jnp.float32), x)[0]


@pytest.mark.slow
@pytest.mark.parametrize("function", [relu, gelu, norm, self_attention])
def test_activations_in_bfloat16(function):
    """As in float32 but for the rounding of what goes in and comes out, of derivatives too."""

    def value_and_gradient(x):
        return function(x), jax.grad(lambda x: function(x)[..., :5].sum())(x)

    for one, other in zip(value_and_gradient(X.astype(jnp.bfloat16)), value_and_gradient(X), strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(np.float32), other, rtol=2e-2, atol=3e-2)


def test_layer_norm_saves_its_input():
    """And two numbers for each row."""
    module = LayerNorm()
    variables = module.init(jax.random.key(0), X)
    saved = jax.tree.leaves(jax.vjp(module.apply, variables, X)[1])
    assert sum(x.size for x in saved if jnp.ndim(x)) == X.size + 2 * X[..., 0].size + X.shape[-1]


def test_attention():
    """Against a loop over heads and queries in float64."""
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.standard_normal((2, n, 8)) for n in (3, 5, 5))
    allowed = rng.uniform(size=(2, 3, 5)) > 0.4
    allowed[..., 0] = True
    module = MultiheadAttention(num_heads=2)
    inputs = [jnp.asarray(x, jnp.float32) for x in (queries, keys, values)]
    variables = module.init(jax.random.key(0), *inputs)
    variables = jax.tree.map(lambda x: np.asarray(rng.standard_normal(x.shape), np.float32), variables)
    output, attention = module.apply(variables, *inputs, jnp.asarray(allowed))

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
