"""Photos grouped by shape into batches."""

import numpy as np
import pytest

from fasseg_jax.config import base_config
from fasseg_jax.inference import batching
from fasseg_jax.inference.batching import batches_of, group_photos
from fasseg_jax.inference.views import PhotoViews, inference_settings


def views_of(size, mode="single"):
    config = base_config()
    config.inference.update(mode=mode, short_side=32, max_long_side=320)
    config.inference.multi_scale.update(short_sides=(32, 64), max_long_side=640)
    config.inference.sliding.update(window=(32, 32), overlap=0.0)
    config.inference = inference_settings(config)
    return PhotoViews(np.zeros((*size, 3), np.uint8), config)


def sizes_of(groups):
    return [[photo.size for photo in group] for group in groups]


def test_photos_of_a_shape_fill_a_batch():
    a, b, c = (32, 64), (32, 60), (40, 32)  # a and b are padded to the same shape
    photos = [views_of(size) for size in (a, c, b, a, c, b, b)]
    assert sizes_of(group_photos(photos, lambda photo: photo, 2)) == [[a, b], [c, c], [a, b], [b]]
    assert sizes_of(group_photos(photos, lambda photo: photo, 1)) == [[a], [c], [b], [a], [c], [b], [b]]


def test_windows_of_one_photo_fill_a_batch():
    photos = [views_of(size, "sliding") for size in ((64, 64), (30, 64), (64, 64))]
    assert [photo.num_windows for photo in photos] == [4, 2, 4]
    assert sizes_of(group_photos(photos, lambda photo: photo, 4)) == [[(64, 64)], [(64, 64)], [(30, 64)]]


def test_few_photos_wait(monkeypatch):
    """Whatever their shapes, no more photos wait than agreed; those that waited longest go first; none is lost."""
    monkeypatch.setattr(batching, "WAITING", 2)
    sizes = [(32, 32 + 32 * (number * number % 7)) for number in range(50)]
    taken = given = 0

    def photos():
        nonlocal taken
        for size in sizes:
            taken += 1
            yield views_of(size)

    groups = []
    for group in group_photos(photos(), lambda photo: photo, 4):
        assert taken - given <= 2 * 4 + 1
        given += len(group)
        groups.append(group)
    assert sorted(photo.size for group in groups for photo in group) == sorted(sizes)
    assert all(len({photo.shapes for photo in group}) == 1 for group in groups)


@pytest.mark.parametrize(
    ("group", "batch", "expected"),
    [
        ("ab", 2, ["a0 b0", "a1 b1", "a2 b2", "a3 b3"]),  # each size with its mirror image
        ("a", 2, ["a0 a1", "a2 a3"]),
        ("abc", 4, ["a0 b0 c0 a1", "b1 c1", "a2 b2 c2 a3", "b3 c3"]),
    ],
)
def test_batches_hold_one_shape_view_after_view(group, batch, expected):
    shapes = views_of((32, 64), "multi_scale").shapes
    assert shapes == ((32, 64), (32, 64), (64, 128), (64, 128))
    batches = batches_of(shapes, group, batch)
    assert [" ".join(f"{photo}{index}" for photo, index in inputs) for inputs in batches] == expected
