"""Test sizes, resizing and normalization, compared with plain arithmetic."""

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.preprocessing import normalize, resize_photo, resized_size


@pytest.mark.parametrize(
    ("size", "short_side", "max_long_side", "expected"),
    [
        ((512, 683), 512, 2048, (512, 683)),
        ((364, 500), 512, 2048, (512, 703)),  # 703.30
        ((300, 401), 512, 2048, (512, 684)),  # 684.37
        ((3000, 4000), 512, 2048, (512, 683)),  # 682.67
        ((4000, 3000), 640, 2560, (853, 640)),
        ((1024, 2048), 1024, 2048, (1024, 2048)),
        ((37, 2500), 512, 2048, (30, 2048)),  # 30.3: the longer side is the limit
        ((2500, 37), 512, 2048, (2048, 30)),
        ((8, 8), 512, 2048, (512, 512)),
        ((1, 100_000), 512, 2048, (1, 2048)),  # 0.02 rounds to no row at all
    ],
)
def test_resized_size(size, short_side, max_long_side, expected):
    assert resized_size(size, short_side, max_long_side) == expected


def triangle_filter(source, target):
    """(target, source) matrix of Pillow's bilinear filter: a triangle, widened where the photo shrinks."""
    scale = source / target
    support = max(scale, 1.0)
    distance = np.abs(np.arange(source) + 0.5 - (np.arange(target)[:, None] + 0.5) * scale) / support
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(20, 31), (60, 45), (7, 90)])
def test_resize_is_the_antialiased_triangle_filter(size):
    image = np.random.default_rng(0).integers(0, 256, (41, 37, 3), np.uint8)
    resized = resize_photo(image, size)
    expected = np.einsum("Yy,yxc,Xx->YXc", triangle_filter(41, size[0]), image, triangle_filter(37, size[1]))
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, expected, atol=1.01)  # Pillow rounds after each axis
    pillow = Image.fromarray(image).resize(size[::-1], Image.BILINEAR)
    np.testing.assert_array_equal(resized, np.asarray(pillow))


def test_normalize():
    image = np.random.default_rng(1).integers(0, 256, (33, 64, 3), np.uint8)
    result = normalize(image)
    assert result.dtype == np.float32
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    np.testing.assert_allclose(result, (image - mean) / std, atol=1e-6)
