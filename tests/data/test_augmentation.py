"""Augmentation, compared with Pillow resizing the whole photo, and with the recipe written out step by step."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.config import base_config
from fasseg_jax.data.augmentation import augment, pad_to, resize_and_crop
from fasseg_jax.data.color_jitter import jitter_colors


def smooth_photo(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8))
    labels = rng.integers(0, 400, (height, width)).astype(np.uint16)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), labels


def settings(**fields) -> ConfigDict:
    """The base configuration's augmentation with other `fields`."""
    config = base_config().augmentation
    config.update(fields)
    return config


def resize_all(image: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size[::-1], resample))


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((90, 120), (0, 0, 90, 120)),  # unchanged
        ((60, 80), (7, 11, 50, 40)),
        ((37, 49), (0, 5, 37, 44)),
        ((180, 240), (100, 30, 64, 96)),
        ((131, 175), (131 - 64, 175 - 64, 64, 64)),
    ],
)
def test_resize_and_crop_equals_resizing_all(size, window):
    image, labels = smooth_photo(90, 120)
    top, left, height, width = window
    inside = np.s_[top : top + height, left : left + width]
    for ids in (labels, labels.astype(np.uint8)):
        got_image, got_labels = resize_and_crop(image, ids, size, window)
        expected = resize_all(image, size, Image.Resampling.BILINEAR)[inside].astype(int)
        difference = np.abs(got_image.astype(int) - expected)
        assert difference.max() <= 2  # a tie in each of the two passes
        assert difference.mean() < 0.05
        np.testing.assert_array_equal(got_labels, resize_all(ids, size, Image.Resampling.NEAREST)[inside])


@pytest.mark.parametrize("size", [(37, 49), (64, 64), (131, 175), (180, 240)])
def test_labels_lie_right_on_the_resized_photo(size):
    """Each takes the pixel under its center; a border is within half a pixel of the photo's, on average at it."""
    labels = np.arange(90 * 120, dtype=np.uint16).reshape(90, 120)
    _, resized = resize_and_crop(np.zeros((90, 120, 3), np.uint8), labels, size, (0, 0, *size))
    rows, columns = (
        np.floor((np.arange(to) + 0.5) * of / to).astype(int) for to, of in zip(size, (90, 120), strict=True)
    )
    np.testing.assert_array_equal(resized, labels[np.ix_(rows, columns)])

    offsets = []
    for border in range(10, 110, 7):
        halves = np.repeat((np.arange(120) >= border)[None], 90, axis=0)
        photo = np.repeat(halves[..., None], 3, axis=2).astype(np.uint8) * 255
        photo, half = resize_and_crop(photo, halves.astype(np.uint8), size, (0, 0, *size))
        offsets.append((half == 0).mean() * size[1] - (1 - photo.mean() / 255) * size[1])
    assert np.abs(offsets).max() < 0.55 and abs(np.mean(offsets)) < 0.2


def plain_augment(image, labels, config, ignore_label, rng):
    """The recipe step by step, each step on the whole image."""
    short = rng.choice(config.short_sides)
    scale = min(short / min(labels.shape), config.max_long_side / max(labels.shape))
    height, width = (int(side * scale + 0.5) for side in labels.shape)
    image = resize_all(image, (height, width), Image.Resampling.BILINEAR)
    labels = resize_all(labels, (height, width), Image.Resampling.NEAREST)
    top, left = (rng.integers(max(side - crop, 0) + 1) for side, crop in zip((height, width), config.crop, strict=True))
    image = image[top : top + config.crop[0], left : left + config.crop[1]]
    labels = labels[top : top + config.crop[0], left : left + config.crop[1]]
    image = jitter_colors(image, rng)
    if rng.integers(2) == 1:
        image, labels = np.fliplr(image), np.fliplr(labels)
    missing = [(0, crop - side) for crop, side in zip(config.crop, labels.shape, strict=True)]
    return (
        np.pad(image, [*missing, (0, 0)], constant_values=128),
        np.pad(labels, missing, constant_values=ignore_label),
    )


@pytest.mark.parametrize("seed", range(12))
def test_augment_follows_the_recipe(seed):
    image, labels = smooth_photo(60, 90)
    config = settings(short_sides=(20, 40, 60, 90), max_long_side=110, crop=(48, 64))
    got_image, got_labels = augment(image, labels, config, 999, np.random.default_rng(seed))
    expected_image, expected_labels = plain_augment(image, labels, config, 999, np.random.default_rng(seed))
    np.testing.assert_array_equal(got_labels, expected_labels)
    assert got_image.shape == (48, 64, 3) and got_image.dtype == np.uint8
    difference = np.abs(got_image.astype(int) - expected_image)
    assert np.percentile(difference, 90) <= 2  # contrast and saturation scale the rounding of ties
    assert difference.mean() < 0.5


def test_draws_are_uniform():
    """Colors number the columns, so that the crop shows its size, offset and flip."""
    image = np.repeat(np.arange(100, dtype=np.uint8)[None, :, None], 50, axis=0).repeat(3, axis=2)
    labels = np.zeros((50, 100), np.uint8)
    config = settings(short_sides=(25, 50), max_long_side=1000, crop=(32, 32), color_jitter=False)
    crops = [augment(image, labels, config, 255, np.random.default_rng(seed)) for seed in range(1500)]
    large = [rows[0, :, 0].astype(int) for rows, map_ in crops if (map_ == 0).all()]
    assert abs(len(large) / 1500 - 0.5) < 0.05  # the smaller is padded from 25 rows
    flipped = np.mean([row[0] > row[-1] for row in large])
    assert abs(flipped - 0.5) < 0.06
    offsets = np.bincount([row.min() for row in large], minlength=69)
    assert offsets.nonzero()[0].min() == 0 and offsets.nonzero()[0].max() == len(offsets) - 1 == 100 - 32
    assert offsets.max() < 4 * offsets.mean()
    small = next((rows, map_) for rows, map_ in crops if (map_ == 255).any())
    assert (small[0][25:] == 128).all() and (small[1][25:] == 255).all() and (small[1][:25] == 0).all()


def test_switched_off_changes_nothing():
    image, labels = smooth_photo(64, 96)
    config = settings(short_sides=(64,), max_long_side=200, crop=(64, 96), color_jitter=False, flip=False)
    for seed in range(4):
        got_image, got_labels = augment(image, labels, config, 999, np.random.default_rng(seed))
        np.testing.assert_array_equal(got_image, image)
        np.testing.assert_array_equal(got_labels, labels)


def test_turns_and_reflections_have_the_same_chance():
    """Of a square crop, both flips and the quarter turns make the eight symmetries, and labels go with the pixels."""
    image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    labels = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    config = settings(
        short_sides=(32,), crop=(32, 32), color_jitter=False, flip=True, vertical_flip=True, quarter_turns=True
    )
    symmetries = [np.rot90(side, turns) for side in (labels, labels.T) for turns in range(4)]
    counts = np.zeros(8, int)
    for seed in range(1600):
        got_image, got_labels = augment(image, labels, config, 9999, np.random.default_rng(seed))
        np.testing.assert_array_equal(got_image, image.reshape(-1, 3)[got_labels])
        counts += [np.array_equal(got_labels, symmetry) for symmetry in symmetries]
    assert counts.sum() == 1600
    np.testing.assert_allclose(counts / 1600, 1 / 8, atol=0.035)
    config.update(vertical_flip=True, quarter_turns=False, flip=False)
    upside_down = [augment(image, labels, config, 9999, np.random.default_rng(seed))[1] for seed in range(400)]
    share = np.mean([np.array_equal(got, labels[::-1]) for got in upside_down])
    assert abs(share - 0.5) < 0.1
    assert all(np.array_equal(got, labels) or np.array_equal(got, labels[::-1]) for got in upside_down)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_balanced_crops_hold_a_rare_class_as_often_as_asked(share):
    """Class 1 has four pixels of 19,200 at the edge, so that few crops would hold it, and class 2 a stripe."""
    image, labels = smooth_photo(120, 160)
    labels = np.zeros_like(labels)
    labels[:, 60:70] = 2
    labels[118:, 158:] = 1
    config = settings(short_sides=(120,), crop=(32, 32), color_jitter=False, balanced_crops=share)
    crops = [augment(image, labels, config, 999, np.random.default_rng(seed))[1] for seed in range(1500)]
    found = np.mean([[(crop == class_id).any() for class_id in range(3)] for crop in crops], axis=0)
    offsets = [(top, left) for top in range(89) for left in range(129)]  # of crops laid anywhere
    anywhere = np.array(
        [np.mean([(labels[y : y + 32, x : x + 32] == class_id).any() for y, x in offsets]) for class_id in range(3)]
    )
    # A balanced crop is laid on class 1 in one case of three. One that is laid on another class may hold it too.
    assert found[1] >= share / 3 - 0.04
    assert abs(found[1] - (share / 3 + (1 - share) * anywhere[1])) < 0.05
    assert found[2] >= share / 3 + (1 - share) * anywhere[2] - 0.05
    if share == 0:
        np.testing.assert_allclose(found, anywhere, atol=0.05)


def test_a_balanced_crop_lies_anywhere_around_its_pixel():
    image, labels = np.zeros((90, 130, 3), np.uint8), np.full((90, 130), 999, np.uint16)
    labels[50, 70] = 3
    config = settings(short_sides=(90,), crop=(32, 64), color_jitter=False, flip=False, balanced_crops=1.0)
    rows, columns = zip(
        *(
            np.argwhere(augment(image, labels, config, 999, np.random.default_rng(seed))[1] == 3)[0]
            for seed in range(3000)
        ),
        strict=True,
    )
    assert set(rows) == set(range(32))
    assert set(columns) == set(range(4, 64))  # a crop that ends at the right edge has it at column 4
    assert np.bincount(rows).max() < 2 * 3000 / 32


def test_a_photo_without_labels_is_cropped_anywhere():
    image, labels = smooth_photo(40, 40)
    config = settings(short_sides=(40, 20), crop=(32, 32), balanced_crops=1.0)
    for seed in range(4):
        _, got = augment(image, np.full_like(labels, 999), config, 999, np.random.default_rng(seed))
        assert (got == 999).all()


def test_pad_to_copies():
    labels = np.ones((2, 3), np.uint8)
    padded = pad_to(labels, (2, 3), 255)
    padded[0, 0] = 9
    assert labels[0, 0] == 1
    np.testing.assert_array_equal(pad_to(labels, (3, 4), 7), [[1, 1, 1, 7], [1, 1, 1, 7], [7, 7, 7, 7]])
