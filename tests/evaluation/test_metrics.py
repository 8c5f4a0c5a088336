"""Metrics against masks eroded by scipy, loops in plain numpy, and cases counted by hand."""

import numpy as np
import pytest
from scipy import ndimage

from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.evaluation.metrics import Counts, boundary_distance, count, find_boundary, image_score, metrics_of

IGNORE = 255


def patches(rng, size, num_classes, scale=9):
    """A label map of large patches with ragged borders."""
    small = rng.integers(0, num_classes, (size[0] // scale + 2, size[1] // scale + 2))
    y, x = np.mgrid[: size[0], : size[1]]
    y, x = (axis + rng.integers(0, 3, size) for axis in (y, x))
    return small[y // scale, x // scale].astype(np.uint8)


def boundary_of_mask(mask, distance):
    """The definition of Cheng et al. 2021: what erosion by a 3x3 square takes away, the image's outside being empty."""
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)


def reference_counts(truth, prediction, num_classes, distance):
    """Class by class, mask by mask."""
    valid = truth != IGNORE
    confusion = np.zeros((num_classes, num_classes), int)
    for t, p in zip(truth[valid], prediction[valid], strict=True):
        confusion[t, p] += 1
    intersection, union = [], []
    for class_id in range(num_classes):
        masks = [(labels == class_id) & valid for labels in (truth, prediction)]
        first, second = (boundary_of_mask(mask, distance) for mask in masks)
        intersection.append((first & second).sum())
        union.append((first | second).sum())
    return confusion, np.array(intersection), np.array(union)


@pytest.mark.parametrize(
    ("size", "distance"),
    [
        ((40, 57), 1),
        ((57, 40), 3),
        ((31, 31), 7),
        ((15, 60), 7),
        ((14, 60), 7),
        ((5, 60), 7),
        ((1, 1), 1),
        ((1, 90), 2),
    ],
    ids=str,
)
def test_boundaries_are_what_erosion_takes(size, distance):
    rng = np.random.default_rng(0)
    labels = patches(rng, size, 3, scale=4 * distance)
    expected = np.zeros(size, bool)
    for class_id in range(3):
        expected |= boundary_of_mask(labels == class_id, distance)
    np.testing.assert_array_equal(find_boundary(labels, distance), expected)
    if min(size) > 2 * distance + 1:
        assert not expected.all()


@pytest.mark.parametrize(
    ("size", "distance"), [((512, 683), 17), ((1024, 2048), 46), ((10, 10), 1), ((3, 4), 1)], ids=str
)
def test_boundaries_are_two_percent_of_the_diagonal(size, distance):
    # Diagonals: 853.6, 2289.7, 14.1, 5 pixels.
    assert boundary_distance(size) == distance


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize("size", [(120, 160), (600, 700)], ids=str)
def test_counts_agree_with_masks(size, dtype):
    """The larger image is counted in several parts."""
    rng = np.random.default_rng(1)
    truth, prediction = (patches(rng, size, 4, scale=50) for _ in range(2))
    prediction = np.where(rng.uniform(size=size) < 0.6, truth, prediction)
    prediction[size[0] // 2 :] = truth[size[0] // 2 :]
    truth[patches(rng, size, 6, scale=30) == 0] = IGNORE
    prediction[prediction == 3] = 2  # a class that is never predicted
    counts = count(truth.astype(dtype), prediction.astype(dtype), 6, IGNORE)
    confusion, intersection, union = reference_counts(truth, prediction, 6, boundary_distance(size))
    for got, expected in zip(
        (counts.confusion, counts.boundary_intersection, counts.boundary_union),
        (confusion, intersection, union),
        strict=True,
    ):
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, expected)
    assert (intersection[:3] > 0).all() and (intersection < union).any()
    without = count(truth, prediction, 6, IGNORE, boundary=False)
    np.testing.assert_array_equal(without.confusion, confusion)
    assert not without.boundary_union.any()


def test_more_classes_than_a_byte_holds():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 300, (40, 40))
    prediction = np.where(rng.uniform(size=truth.shape) < 0.5, truth, rng.integers(0, 300, truth.shape))
    truth[:3] = 65535
    counts = count(truth.astype(np.uint16), prediction.astype(np.uint16), 300, 65535)
    expected = np.zeros((300, 300), int)
    np.add.at(expected, (truth[3:], prediction[3:]), 1)
    np.testing.assert_array_equal(counts.confusion, expected)


def test_counted_by_hand():
    """A square one column off: 10x10 pixels, boundaries one pixel wide."""
    truth, prediction = np.zeros((2, 10, 10), np.uint8)
    truth[2:7, 2:7] = 1
    prediction[2:7, 3:8] = 1
    counts = count(truth, prediction, 2, IGNORE)
    np.testing.assert_array_equal(counts.confusion, [[70, 5], [5, 20]])
    # The square's boundary is its outline, 16 pixels; of the two outlines the horizontal sides share 2 x 4 pixels, and
    # the vertical ones, in columns 2 and 6, and 3 and 7, none.
    # The background's: 36 at the image's border and a ring of 7x7 - 5x5 = 24 around the square. The rings share their
    # horizontal sides, 2 x 6, and none of the vertical ones, except that the ring of the prediction reaches column 8.
    assert counts.boundary_intersection.tolist() == [36 + 12, 8]
    assert counts.boundary_union.tolist() == [2 * 60 - 48, 2 * 16 - 8]
    metrics = metrics_of(counts)
    np.testing.assert_allclose(metrics.iou, [70 / 80, 20 / 30])
    np.testing.assert_allclose(metrics.boundary_iou, [48 / 72, 8 / 24])
    np.testing.assert_allclose(metrics.mean_boundary_iou, (48 / 72 + 8 / 24) / 2)


def test_metrics_of_a_small_matrix():
    # Class 0: 6 of 8 right; class 1: 3 of 4; class 2: predicted once, never true; class 3: neither.
    confusion = np.array([[6, 1, 1, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    metrics = metrics_of(Counts(confusion, np.array([2, 1, 0, 0]), np.array([4, 3, 1, 0])))
    np.testing.assert_allclose(metrics.iou, [6 / 9, 3 / 5, 0, np.nan])
    np.testing.assert_allclose(metrics.accuracy, [6 / 8, 3 / 4, np.nan, np.nan])
    np.testing.assert_allclose(metrics.boundary_iou, [2 / 4, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(metrics.truth_share, [8 / 12, 4 / 12, 0, 0])
    np.testing.assert_allclose(metrics.predicted_share, [7 / 12, 4 / 12, 1 / 12, 0])
    # Means are over the classes of the truth: 0 and 1.
    np.testing.assert_allclose(metrics.mean_iou, (6 / 9 + 3 / 5) / 2)
    np.testing.assert_allclose(metrics.frequency_weighted_iou, 8 / 12 * 6 / 9 + 4 / 12 * 3 / 5)
    np.testing.assert_allclose(metrics.mean_accuracy, (6 / 8 + 3 / 4) / 2)
    np.testing.assert_allclose(metrics.mean_boundary_iou, (2 / 4 + 1 / 3) / 2)
    np.testing.assert_allclose(metrics.pixel_accuracy, 9 / 12)


def test_truth_as_prediction_is_perfect():
    """Whatever is predicted where the truth is ignored."""
    classes = load_classes("shapes")
    source = ShapesSource("validation", 4, (96, 128), classes, IGNORE)
    counts = Counts.zeros(len(classes))
    rng = np.random.default_rng(0)
    for sample in (source[index] for index in range(len(source))):
        assert (sample.labels == IGNORE).any()
        prediction = np.where(sample.labels == IGNORE, rng.integers(0, 6, sample.labels.shape), sample.labels)
        one = count(sample.labels, prediction, len(classes), IGNORE)
        assert image_score(one) == 1
        counts += one
    metrics = metrics_of(counts)
    present = metrics.truth_share > 0
    assert present.sum() >= 4
    for mean in ("mean_iou", "frequency_weighted_iou", "mean_accuracy", "pixel_accuracy", "mean_boundary_iou"):
        assert getattr(metrics, mean) == 1, mean
    for each in (metrics.iou, metrics.accuracy, metrics.boundary_iou):
        np.testing.assert_array_equal(each[present], 1)
    np.testing.assert_array_equal(metrics.truth_share, metrics.predicted_share)


def test_nothing_counted_is_undefined():
    metrics = metrics_of(count(np.full((6, 8), IGNORE), np.zeros((6, 8), int), 3, IGNORE))
    for mean in ("mean_iou", "frequency_weighted_iou", "mean_accuracy", "pixel_accuracy", "mean_boundary_iou"):
        assert np.isnan(getattr(metrics, mean)), mean
    assert np.isnan(metrics.iou).all() and np.isnan(metrics.truth_share).all()


def test_boundaries_not_counted_are_undefined():
    truth = np.zeros((6, 8), np.uint8)
    metrics = metrics_of(count(truth, truth, 2, IGNORE, boundary=False))
    assert metrics.mean_iou == 1 and np.isnan(metrics.mean_boundary_iou)


def test_counts_add_up_and_travel_as_a_vector():
    rng = np.random.default_rng(3)
    parts = [Counts.from_vector(rng.integers(0, 2**40, 15)) for _ in range(3)]
    total = sum(parts, start=Counts.zeros(3))
    np.testing.assert_array_equal(total.confusion, sum(part.confusion for part in parts))
    np.testing.assert_array_equal(total.boundary_intersection, sum(part.boundary_intersection for part in parts))
    np.testing.assert_array_equal(total.boundary_union, sum(part.boundary_union for part in parts))
    assert total.confusion.shape == (3, 3) and total.confusion.dtype == np.int64
    np.testing.assert_array_equal(Counts.from_vector(total.to_vector()).to_vector(), total.to_vector())
    with pytest.raises(ValueError, match="got 14"):
        Counts.from_vector(np.zeros(14, np.int64))


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 3, 255]], [[0, 0, 0]], r"a\.png: the ground truth holds ids that are no classes: 3; the 3 classes"),
        ([[0, -1, 255]], [[0, 0, 0]], r"a\.png: the ground truth holds ids that are no classes: -1;"),
        ([[0, 1, 255]], [[0, 7, 9]], r"a\.png: the prediction holds ids that are no classes: 7;"),
        ([[0, 1, 255]], [[0, 1]], r"a\.png: .* got \(1, 3\) and \(1, 2\)"),
    ],
)
def test_bad_labels_are_named(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        count(np.array(truth), np.array(prediction), 3, IGNORE, name="a.png")
