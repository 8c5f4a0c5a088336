"""Deformable attention against a plain loop in float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.deformable_attention import DeformableAttention, deformable_sample, reference_points

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


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    tokens = sum(h * w for h, w in SHAPES)
    values = rng.standard_normal((2, tokens, 2, 4))
    locations = rng.uniform(-0.3, 1.3, (2, 5, 2, len(SHAPES), 3, 2))  # inside, at the border and outside
    weights = rng.uniform(size=(2, 5, 2, len(SHAPES), 3))
    return values, locations, weights


def test_values(inputs):
    ours = jax.jit(deformable_sample, static_argnums=3)(*(x.astype(np.float32) for x in inputs), SHAPES)
    np.testing.assert_allclose(ours, naive_sample(*inputs, SHAPES), atol=2e-6)


def test_gradients(inputs):
    """Of a random projection of the output, against central differences of the naive float64 loop."""
    projection = np.random.default_rng(1).standard_normal((2, 5, 2, 4))

    def ours(*arguments):
        return jnp.sum(deformable_sample(*arguments, SHAPES) * projection.astype(np.float32))

    gradients = jax.grad(ours, argnums=(0, 1, 2))(*(jnp.asarray(x, jnp.float32) for x in inputs))
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
