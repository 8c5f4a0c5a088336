"""Rare classes: factors, weights and frequencies, compared with formulas and counts written as plain loops."""

import math

import numpy as np
import pytest

from fasseg_jax.data import DataError, TrainingBatches, open_source
from fasseg_jax.data.balance import (
    balance_classes,
    class_weights,
    count_classes,
    epoch_with_repeats,
    repeat_factors,
)
from tests.helpers.data_cases import folder_config, shapes_config, write_folder, write_image

# Five photos and four classes: in all, in two, in one, in none.
PIXELS = np.array([[90, 0, 0, 0], [50, 10, 0, 0], [20, 7, 3, 0], [60, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("threshold", [0.001, 0.5, 1.0])
def test_repeat_factors_are_those_of_lvis(threshold):
    expected = []
    for photo in PIXELS:
        factors = [1.0]
        for class_id in range(4):
            share = sum(other[class_id] > 0 for other in PIXELS) / 5
            if photo[class_id]:
                factors.append(max(1.0, math.sqrt(threshold / share)))
        expected.append(max(factors))
    np.testing.assert_allclose(repeat_factors(PIXELS, threshold), expected, rtol=1e-12)


@pytest.mark.parametrize("power", [0.25, 0.5, 0.6])
def test_class_weights_fall_with_the_share_and_have_a_mean_of_one_over_targets(power):
    weights = np.array(class_weights(PIXELS, power))
    totals = [220, 17, 3]
    np.testing.assert_allclose(weights[:3] / weights[0], [(220 / total) ** power for total in totals], rtol=1e-5)
    targets = [class_id for photo in PIXELS for class_id in range(4) if photo[class_id]]
    np.testing.assert_allclose(np.mean([weights[class_id] for class_id in targets]), 1, rtol=1e-5)
    assert weights[3] == 1


def test_a_single_photo_does_not_outweigh_all():
    pixels = np.zeros((10_000, 2), int)
    pixels[:, 0], pixels[0, 1] = 100, 1
    assert class_weights(pixels, 1.0)[1] == 10
    assert class_weights(np.zeros((3, 2), int), 1.0) == (1.0, 1.0)


def test_an_epoch_visits_photos_as_often_as_their_factors_say():
    repeats = np.array([1.0, 2.5, 1.0, 3.7, 1.25, 1.0])  # their sum is 10.45
    epochs = [epoch_with_repeats(repeats, np.random.default_rng(seed)) for seed in range(4000)]
    assert {len(epoch) for epoch in epochs} == {11}
    counts = np.array([np.bincount(epoch, minlength=6) for epoch in epochs])
    wanted = repeats * 11 / 10.45
    assert (counts >= np.floor(wanted)).all() and (counts <= np.ceil(wanted)).all()
    np.testing.assert_allclose(counts.mean(axis=0), wanted, atol=4 * 0.5 / math.sqrt(4000))
    first = np.bincount([epoch[0] for epoch in epochs], minlength=6) / 4000  # the order is random
    np.testing.assert_allclose(first, wanted / 11, atol=0.04)


def test_factors_of_one_are_epochs_of_all_photos():
    epoch = epoch_with_repeats(np.ones(50), np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(epoch), np.arange(50))


def test_batches_follow_the_factors_on_any_number_of_hosts():
    config = shapes_config()  # ten samples, batches of four
    repeats = np.array([1.0] * 8 + [3.0, 1.5])
    source = open_source(config, "training")
    batches = TrainingBatches(source, config, 7, repeats=repeats)
    visited = np.concatenate([batches[step].index for step in range(20)])  # six epochs of 13, and two samples
    for epoch in visited[:78].reshape(6, 13):
        counts = np.bincount(epoch, minlength=10)
        assert counts[8] == 3 and counts[9] in (1, 2) and (counts[:8] >= 1).all()
    hosts = [TrainingBatches(source, config, 7, host, 2, repeats) for host in range(2)]
    for step in (0, 3, 19):
        parts = [host[step].index for host in hosts]
        np.testing.assert_array_equal(np.concatenate(parts), batches[step].index)
    again = TrainingBatches(source, config, 7, repeats=repeats)
    np.testing.assert_array_equal(again[13].images, batches[13].images)


# The scan


@pytest.fixture
def root(tmp_path):
    root = write_folder(tmp_path / "data")
    for index in range(5):
        labels = np.full((8, 9), 255, np.uint8)
        labels[0, : 1 + index % 3] = np.arange(1 + index % 3)
        write_image(root / f"images/training/{index}.jpg", np.zeros((8, 9, 3), np.uint8))
        write_image(root / f"annotations/training/{index}.png", labels)
    return root


EXPECTED = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]])


def test_the_scan_is_remembered_until_a_file_changes(root, tmp_path, monkeypatch):
    config = folder_config(root)
    source, cache = open_source(config, "training"), tmp_path / "run" / "classes.npz"
    np.testing.assert_array_equal(count_classes(source, config.data, cache), EXPECTED)
    with monkeypatch.context() as patched:
        patched.setattr(type(source), "__getitem__", lambda *_: pytest.fail("a sample is read again"))
        np.testing.assert_array_equal(count_classes(source, config.data, cache), EXPECTED)
    write_image(root / "annotations/training/0.png", np.full((8, 9), 2, np.uint8))
    changed = count_classes(source, config.data, cache)
    np.testing.assert_array_equal(changed[0], [0, 0, 72])
    np.testing.assert_array_equal(changed[1:], EXPECTED[1:])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_a_damaged_file_is_written_again(root, tmp_path, content):
    config = folder_config(root)
    source, cache = open_source(config, "training"), tmp_path / "classes.npz"
    cache.write_bytes(content)
    np.testing.assert_array_equal(count_classes(source, config.data, cache), EXPECTED)
    with np.load(cache) as file:
        np.testing.assert_array_equal(file["pixels"], EXPECTED)


def test_a_sample_that_cannot_be_read_is_named(root):
    config = folder_config(root)
    (root / "annotations/training/3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"training/3\.png"):
        count_classes(open_source(config, "training"), config.data)


def test_only_what_is_asked_for_is_computed(root, monkeypatch):
    config = folder_config(root)
    source = open_source(config, "training")
    config.data.repeat_below, config.loss.class_balance = 0.9, 0.5
    repeats, weights = balance_classes(config, source)
    np.testing.assert_allclose(repeats, repeat_factors(EXPECTED, 0.9))
    assert weights == class_weights(EXPECTED, 0.5) and len(set(weights)) == 3
    config.loss.class_weights = (1.0, 2.0, 3.0)  # given weights count
    assert balance_classes(config, source)[1] == (1.0, 2.0, 3.0)
    config.data.repeat_below = 0.0
    monkeypatch.setattr(type(source), "__getitem__", lambda *_: pytest.fail("a sample is read in vain"))
    assert balance_classes(config, source) == (None, (1.0, 2.0, 3.0))
    config.loss.class_weights, config.loss.class_balance = (), 0.0
    assert balance_classes(config, source) == (None, ())
