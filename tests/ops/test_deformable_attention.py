"""Deformable sampling by each method against a plain loop in float64 and against the reference, and its layer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax import build_model
from fasseg_jax.models.layers.deformable_attention import DeformableAttention, reference_points
from fasseg_jax.ops import reference
from fasseg_jax.ops.deformable.sampling import METHODS, deformable_sample
from tests.helpers.lowering import AMD, AMPERE, BLACKWELL, TPU, TURING, have_devices, lowered_text, remove_triton
from tests.helpers.tiny import random_variables

SHAPES = ((2, 3), (4, 5), (6, 7))


def naive_sample(values, locations, weights, shapes):
    """Definition: bilinear interpolation between pixel centres, zero outside, in float64."""
    b, _, m, d = values.shape
    q, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    out = np.zeros((b, q, m, d))
    starts = np.cumsum([0] + [h * w for h, w in shapes])
    for index in np.ndindex(b, q, m, levels, points):
        image, query, head, level, _ = index
        h, w = shapes[level]
        level_values = values[image, starts[level] : starts[level + 1], head].reshape(h, w, d)
        x, y = locations[index] * (w, h) - 0.5
        for row in (int(np.floor(y)), int(np.floor(y)) + 1):
            for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= row < h and 0 <= column < w:
                    near = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[image, query, head] += weights[index] * near * level_values[row, column]
    return out


def draw(shapes, queries, channels):
    """float64 arguments, exact in float32; samples inside, at the border and outside, anywhere for each query."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, sum(h * w for h, w in shapes), 2, channels))
    locations = rng.uniform(-0.3, 1.3, (2, queries, 2, len(shapes), 3, 2))
    weights = rng.uniform(size=(2, queries, 2, len(shapes), 3))
    return [x.astype(np.float32).astype(np.float64) for x in (values, locations, weights)]


@pytest.fixture
def inputs():
    return draw(SHAPES, 5, 4)


def float32(arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def sample(values, locations, weights, shapes, method):
    """`deformable_sample`, or its reference."""
    if method == "reference":
        return reference.deformable_sample(values, locations, weights, shapes)
    return deformable_sample(values, locations, weights, shapes, method)


@pytest.mark.parametrize("method", ["reference", "auto", *METHODS])
def test_values(inputs, method):
    ours = jax.jit(sample, static_argnums=(3, 4))(*float32(inputs), SHAPES, method)
    np.testing.assert_allclose(ours, naive_sample(*inputs, SHAPES), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reference", *METHODS])
def test_gradients(inputs, method):
    """Of a random projection of the output, against central differences of the naive float64 loop."""
    projection = np.random.default_rng(1).standard_normal((2, 5, 2, 4))

    def ours(*arguments):
        return jnp.sum(sample(*arguments, SHAPES, method) * projection.astype(np.float32))

    gradients = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*float32(inputs))
    step = 1e-6
    rng = np.random.default_rng(2)
    for argument, gradient in enumerate(gradients):
        for flat in rng.choice(inputs[argument].size, 40, replace=False):
            difference = []
            for sign in (1, -1):
                moved = [x.copy() for x in inputs]
                moved[argument].flat[flat] += sign * step
                difference.append((naive_sample(*moved, SHAPES) * projection).sum())
            expected = (difference[0] - difference[1]) / (2 * step)
            np.testing.assert_allclose(np.asarray(gradient).flat[flat], expected, rtol=1e-4, atol=1e-4)


# A level of several chunks, one of chunks of a single row, widths that are no multiples of a register.
LARGE_SHAPES = ((3, 5), (23, 36), (3, 260))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tpu", "gpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_many_tiles_and_chunks(dtype, method):
    """Several tiles, the last one incomplete, and a number of channels that is no power of two.

    float32 places a sample to 2^-17 of a pixel near column 260, where values differ by 5.
    bfloat16 holds values, weights of pixels and the result to 8 bits, the sum in float32.
    """
    values, locations, weights = draw(LARGE_SHAPES, 300, 12)
    values = np.asarray(jnp.asarray(values, dtype), np.float64)
    expected = naive_sample(values, locations, weights, LARGE_SHAPES)
    ours = jax.jit(sample, static_argnums=(3, 4))(
        jnp.asarray(values, dtype), *float32((locations, weights)), LARGE_SHAPES, method
    )
    assert ours.dtype == dtype
    error = np.abs(np.asarray(ours, np.float64) - expected)
    assert error.max() < (5 * 2**-17 if dtype == "float32" else 2**-7 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_reference(method):
    """Over many tiles and chunks."""
    arrays = float32(draw(LARGE_SHAPES, 300, 12))
    gradient = jnp.asarray(np.random.default_rng(1).standard_normal((2, 300, 2, 12)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(method):
        return jax.vjp(lambda *x: sample(*x, LARGE_SHAPES, method), *arrays)[1](gradient)

    for ours, theirs in zip(gradients(method), gradients("reference"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.slow
def test_slope_on_a_pixel_centre_is_that_to_the_right():
    """Exactly representable positions: all methods take the same side."""
    values = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 1, 4)), jnp.float32)
    grid = (np.arange(8) + 0.5) / 8
    locations = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(1, 64, 1, 1, 1, 2)
    locations = jnp.asarray(locations, jnp.float32)
    weights = jnp.ones((1, 64, 1, 1, 1))
    slopes = {}
    for method in ("reference", *METHODS):

        def total(x, method=method):
            return sample(values, x, weights, ((8, 8),), method).sum()

        slopes[method] = jax.jit(jax.grad(total))(locations)[0, :, 0, 0, 0].reshape(8, 8, 2)
    sums = np.asarray(values.sum(axis=-1)).reshape(8, 8)
    for slope in slopes.values():
        np.testing.assert_allclose(slope, slopes["reference"], atol=1e-4)
        np.testing.assert_allclose(slope[:, :-1, 0], 8 * np.diff(sums, axis=1), atol=1e-4)
        np.testing.assert_allclose(slope[:-1, :, 1], 8 * np.diff(sums, axis=0), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "devices", "target", "kernels"),
    [
        ("auto", [TPU], "tpu", 2),
        ("auto", [TPU] * 4, "tpu", 0),
        ("gather", [TPU], "tpu", 0),
        ("tpu", [], "tpu", 2),
        ("auto", [AMPERE], "cuda", 2),
        ("auto", [BLACKWELL], "cuda", 2),
        ("auto", [AMPERE] * 2, "cuda", 0),
        ("auto", [TURING], "cuda", 0),
        ("auto", [AMD], "rocm", 0),
        ("gpu", [], "cuda", 2),
    ],
)
def test_programs_hold_the_kernels(inputs, monkeypatch, method, devices, target, kernels):
    """Forward and backward lowered for a platform, where JAX has such devices."""
    if devices:
        have_devices(monkeypatch, devices)

    def total(*arguments):
        return jnp.square(deformable_sample(*arguments, SHAPES, method)).sum()

    text = lowered_text(jax.value_and_grad(total, argnums=(0, 1, 2)), *float32(inputs), platform=target)
    assert len(re.findall(r"tpu_custom_call|__gpu\$xla\.gpu\.triton", text)) == kernels


@pytest.mark.slow
def test_without_triton_gpus_gather(inputs, monkeypatch):
    have_devices(monkeypatch, [AMPERE])
    remove_triton(monkeypatch)
    text = lowered_text(lambda *xs: deformable_sample(*xs, SHAPES, "auto"), *float32(inputs), platform="cuda")
    assert "triton" not in text and "stablehlo.gather" in text


@pytest.mark.slow
def test_network_is_the_same_by_all_methods(tiny_config):
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 96, 3)), jnp.float32)
    tiny_config.model.decoder.num_layers = 1  # the decoder samples nothing
    variables = random_variables(build_model(tiny_config.model))
    predictions = {}
    for method in METHODS:
        tiny_config.model.deformable_attention = method
        model = build_model(tiny_config.model)
        predictions[method] = jax.jit(model.apply)(variables, images)
    for method in ("tpu", "gpu"):
        ours, theirs = predictions[method], predictions["gather"]
        np.testing.assert_allclose(ours.class_logits, theirs.class_logits, atol=1e-4)
        np.testing.assert_allclose(ours.mask_logits, theirs.mask_logits, atol=1e-4)
    assert np.std(theirs.class_logits) > 0.01 and np.std(theirs.mask_logits) > 0.01
    tiny_config.model.deformable_attention = "sparse"
    with pytest.raises(ValueError, match="deformable_attention is 'sparse'; choose one of auto, gpu, tpu, gather"):
        build_model(tiny_config.model)


def test_reference_points_are_pixel_centres():
    np.testing.assert_allclose(reference_points(((1, 2), (2, 1))), [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]])


def test_initial_offsets_are_compass_directions():
    module = DeformableAttention(num_heads=8, num_points=4)
    tokens = jnp.zeros((1, 6, 16))
    variables = module.init(jax.random.key(0), tokens, tokens, ((2, 3),))
    bias = variables["params"]["sampling_offsets"]["bias"].reshape(8, 1, 4, 2)
    east, north_east, west = bias[0, 0], bias[1, 0], bias[4, 0]
    np.testing.assert_allclose(east, [[1, 0], [2, 0], [3, 0], [4, 0]], atol=1e-6)
    np.testing.assert_allclose(north_east, [[1, 1], [2, 2], [3, 3], [4, 4]], atol=1e-6)
    np.testing.assert_allclose(west, -east, atol=1e-6)
