"""Bilinear resizing against the definition, one output at a time in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.ops import reference
from fasseg_jax.ops.resize import resize_bilinear


def naive_resize(x, size):
    b, h, w, c = x.shape
    out = np.zeros((b, *size, c))
    for i, j in np.ndindex(*size):
        y = max((i + 0.5) * h / size[0] - 0.5, 0)
        z = max((j + 0.5) * w / size[1] - 0.5, 0)
        y0, z0 = int(y), int(z)
        y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
        fy, fz = y - y0, z - z0
        out[:, i, j] = (1 - fy) * ((1 - fz) * x[:, y0, z0] + fz * x[:, y0, z1]) + fy * (
            (1 - fz) * x[:, y1, z0] + fz * x[:, y1, z1]
        )
    return out


@pytest.mark.parametrize(
    "size", [(16, 24), (24, 36), (32, 48), (4, 6), (2, 4), (16, 6), (1, 1), (9, 5), (8, 12), (3, 40)]
)
def test_resize(size):
    x = np.random.default_rng(0).standard_normal((2, 8, 12, 3))
    expected = naive_resize(x, size)
    np.testing.assert_allclose(resize_bilinear(jnp.asarray(x, jnp.float32), size), expected, atol=2e-6)
    # The reference's coordinates are float32.
    np.testing.assert_allclose(reference.resize_bilinear(jnp.asarray(x, jnp.float32), size), expected, atol=5e-6)
