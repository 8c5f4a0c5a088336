"""Measures of a confusion matrix against counting by hand."""

import numpy as np

from fasseg_jax.evaluation import confusion_matrix, scores_of


def test_confusion_matrix_counts_pixels():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 9, 7), np.uint8)
    truth[truth == 3] = 255
    expected = np.zeros((3, 3), int)
    prediction %= 3
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(confusion_matrix(truth, prediction, 3, 255), expected)


def test_scores():
    # Class 0: 6 of 8 right; class 1: 3 of 4; class 2: predicted once, never true; class 3: neither.
    confusion = np.array([[6, 1, 1, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    scores = scores_of(confusion)
    np.testing.assert_allclose(scores.iou[:3], [6 / 9, 3 / 5, 0])
    assert np.isnan(scores.iou[3])
    np.testing.assert_allclose(scores.mean_iou, (6 / 9 + 3 / 5) / 2)  # of the classes in the truth
    np.testing.assert_allclose(scores.pixel_accuracy, 9 / 12)


def test_scores_of_nothing():
    scores = scores_of(np.zeros((2, 2), int))
    assert np.isnan(scores.mean_iou) and scores.pixel_accuracy == 0
