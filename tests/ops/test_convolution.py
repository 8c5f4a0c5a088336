"""3x3 convolutions by tiles: against PyTorch in float64, their rounding error, and where they take XLA's place."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fasseg_jax.ops import convolution
from fasseg_jax.ops.convolution import by_tiles, conv3x3, convolve, directly
from tests.helpers.derivatives import assert_equal, values_and_gradients, values_and_gradients_of_pytorch
from tests.helpers.lowering import lowered_text


def example(shape, features, dtype=np.float32):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, shape[-1], features)) / np.sqrt(9 * shape[-1])
    return rng.standard_normal(shape).astype(dtype), kernel.astype(dtype)


def of_pytorch(x, kernel):
    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=1)
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(6, 8), (5, 8), (6, 7), (1, 1), (3, 2)])
def test_values_and_gradients(size):
    inputs = example((2, *size, 4), 3)
    assert_equal(values_and_gradients(conv3x3, *inputs), values_and_gradients_of_pytorch(of_pytorch, *inputs), 1e-5)


def test_results_and_gradients_are_as_exact_as_those_of_the_plain_sum():
    """Root mean squares of the errors against float64, of the output and of both gradients."""
    inputs = example((1, 32, 32, 64), 48)
    exact = jax.tree.leaves(values_and_gradients_of_pytorch(of_pytorch, *inputs))

    def errors(function):
        found = jax.tree.leaves(values_and_gradients(function, *inputs))
        differences = [np.asarray(a, np.float64) - b.numpy() for a, b in zip(found, exact, strict=True)]
        return [np.sqrt(np.mean(np.square(difference))) for difference in differences]

    for tiles, plain in zip(errors(conv3x3), errors(directly), strict=True):
        assert tiles < 1.5 * plain


def test_only_the_inputs_are_saved():
    x, kernel = map(jnp.asarray, example((1, 4, 4, 2), 3))
    saved = jax.tree.leaves(jax.vjp(conv3x3, x, kernel)[1])
    assert [a.shape for a in saved if jnp.ndim(a)] == [x.shape, kernel.shape]


def test_bfloat16_is_rounded_once():
    x, kernel = map(jnp.asarray, example((1, 6, 8, 16), 8, jnp.bfloat16))
    [exact], _ = values_and_gradients_of_pytorch(of_pytorch, x, kernel)
    y = by_tiles(x, kernel)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), exact, rtol=2**-8, atol=1e-6)
    assert [g.dtype for g in jax.grad(lambda *a: conv3x3(*a).sum(), (0, 1))(x, kernel)] == [jnp.bfloat16] * 2


@pytest.mark.parametrize(("platform", "has_convolution"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_only_cpus_go_by_tiles(platform, has_convolution):
    def value_and_gradients(x, kernel):
        y, derivative = jax.vjp(conv3x3, x, kernel)
        return derivative(y)

    text = lowered_text(value_and_gradients, *example((1, 4, 4, 2), 2), platform=platform)
    assert ("stablehlo.convolution" in text) == has_convolution


def test_a_flax_layer_goes_by_tiles_where_the_maps_are_large(monkeypatch):
    """Whatever it computes, it is what Flax's own layer computes."""
    taken = []
    monkeypatch.setattr(convolution, "conv3x3", lambda *inputs: taken.append(0) or conv3x3(*inputs))
    x, _ = example((2, 8, 6, 4), 5)

    def goes_by_tiles(*size, **settings):
        taken.clear()
        ours, plain = nn.Conv(5, *size, conv_general_dilated=convolve, **settings), nn.Conv(5, *size, **settings)
        variables = plain.init(jax.random.key(0), x)
        np.testing.assert_allclose(ours.apply(variables, x), plain.apply(variables, x), atol=1e-5)
        return bool(taken)

    assert not goes_by_tiles((3, 3), padding=1)  # small
    monkeypatch.setattr(convolution, "SMALLEST_MAP", 2 * 8 * 6 * 4)
    assert goes_by_tiles((3, 3), padding=1)
    assert not goes_by_tiles((3, 3), strides=2, padding=1)
    assert not goes_by_tiles((3, 3), padding=2)
    assert not goes_by_tiles((3, 3), padding="VALID")
    assert not goes_by_tiles((1, 1))
    assert not goes_by_tiles((5, 5), padding=2)
    monkeypatch.setattr(convolution, "SMALLEST_MAP", 2 * 8 * 6 * 4 + 1)
    assert not goes_by_tiles((3, 3), padding=1)
