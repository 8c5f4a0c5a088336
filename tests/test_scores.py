"""Scores and labels of a photo against PyTorch's order of operations, written in plain numpy and float64."""

import jax
import numpy as np
import pytest

from fasseg_jax import scores
from fasseg_jax.scores import View, photo_labels, photo_scores


def random_view(size, num_queries=7, num_classes=5, seed=0):
    """A view of random classes and masks for a photo resized to `size`."""
    rng = np.random.default_rng(seed)
    height, width = (side + -side % 32 for side in size)
    logits = 4 * rng.standard_normal((height // 4, width // 4, num_queries))
    classes = rng.dirichlet(np.full(num_classes + 1, 0.3), num_queries)[:, :-1]
    return View(size, classes.astype(np.float32), logits.astype(np.float32))


def interpolation_matrix(source, target):
    """(target, source) matrix of a bilinear resize with half-pixel centres, clamped at the border."""
    matrix = np.zeros((target, source))
    for row in range(target):
        position = min(max((row + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(np.floor(position))
        matrix[row, low] += 1 - (position - low)
        matrix[row, min(low + 1, source - 1)] += position - low
    return matrix


def reference_scores(view, size):
    """(H, W, K): masks to the padded size, product, padding cut, scores to the photo's size."""
    masks = np.asarray(view.mask_logits, np.float64)
    height, width, _ = masks.shape
    up_y, up_x = interpolation_matrix(height, 4 * height), interpolation_matrix(width, 4 * width)
    masks = np.einsum("yh,hwq,xw->yxq", up_y, masks, up_x, optimize=True)
    padded = np.einsum("qk,yxq->yxk", view.class_probabilities, 1 / (1 + np.exp(-masks)), optimize=True)
    h, w = view.size
    resize_y, resize_x = interpolation_matrix(h, size[0]), interpolation_matrix(w, size[1])
    return np.einsum("Yy,yxk,Xx->YXk", resize_y, padded[:h, :w], resize_x, optimize=True)


def assert_labels(labels, expected_scores, margin=1e-5):
    best = np.sort(expected_scores, axis=-1)
    decided = best[..., -1] - best[..., -2] > margin
    np.testing.assert_array_equal(labels[decided], expected_scores.argmax(-1)[decided])
    assert decided.mean() > 0.95
    assert len(np.unique(labels)) > 1


SIZES = [  # resized photo, photo
    ((96, 128), (96, 128)),  # as it is
    ((96, 127), (97, 129)),
    ((100, 75), (751, 563)),  # enlarged, several tiles of rows
    ((64, 96), (9, 13)),  # made smaller
    ((128, 128), (8, 8)),
    ((30, 400), (37, 493)),  # wide
    ((1, 300), (1, 700)),  # a single row
    ((300, 1), (450, 2)),
    ((45, 64), (450, 21)),  # one side larger, the other smaller
]


@pytest.mark.parametrize(("resized", "size"), SIZES, ids=str)
def test_scores_and_labels_equal_the_whole_computation(resized, size):
    view = random_view(resized)
    expected = reference_scores(view, size)
    actual = photo_scores(view, size)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    labels = photo_labels(view, size)
    assert labels.dtype == np.uint8
    assert_labels(labels, expected)


def test_tiles_of_columns(monkeypatch):
    monkeypatch.setattr(scores, "MAX_TILE_WIDTH", 64)
    for resized, size in [((64, 90), (70, 500)), ((64, 90), (70, 130)), ((32, 400), (20, 100))]:
        view = random_view(resized, seed=1)
        expected = reference_scores(view, size)
        np.testing.assert_allclose(photo_scores(view, size), expected, atol=3e-6)
        assert_labels(photo_labels(view, size), expected)


def test_first_of_equal_classes_wins():
    view = random_view((32, 32))
    same = np.zeros_like(view.class_probabilities)
    same[:, 2:4] = 0.5
    labels = photo_labels(View(view.size, same, view.mask_logits), (50, 40))
    np.testing.assert_array_equal(labels, np.full((50, 40), 2))


def test_more_than_255_classes():
    view = random_view((32, 64), num_queries=12, num_classes=300)
    labels = photo_labels(view, (40, 70))
    assert labels.dtype == np.uint16
    assert_labels(labels, reference_scores(view, (40, 70)))
    assert labels.max() > 255


def test_every_scale_fills_its_tiles():
    """The bound on the sources of a tile holds for any two lengths, also where rounding moves a position."""
    for source in (1, 2, 31, 32, 33, 64, 100, 512):
        for target in range(1, 200):
            for x, taps in scores._axis_tiles(source, target, 16, 32):
                expected = interpolation_matrix(source, target)[x : x + 16]
                matrix = np.zeros((16, source))
                np.add.at(matrix, (np.arange(16), taps.sources[taps.low]), 1 - taps.weight)
                np.add.at(matrix, (np.arange(16), taps.sources[taps.high]), taps.weight)
                np.testing.assert_allclose(matrix[: len(expected)], expected, atol=1e-6)


def test_photos_of_similar_sizes_share_compiled_tiles():
    view = random_view((128, 171), seed=2)
    before = scores._label_tile._cache_size()
    for height, width in [(384, 512), (383, 511), (382, 505), (390, 520), (375, 500), (360, 480), (388, 517)]:
        photo_labels(view, (height, width))
    assert scores._label_tile._cache_size() - before <= 4


def test_memory_does_not_grow_with_the_photo():
    """The temporary memory of a compiled tile, as XLA plans it, for photos of 1 and of 48 megapixels."""

    def temporary_bytes(size):
        planned = []

        def plan(*arguments):
            analysis = scores._label_tile.lower(*arguments).compile().memory_analysis()
            planned.append(analysis.temp_size_in_bytes)
            raise StopIteration

        view = random_view((128, 171), num_classes=20)
        with pytest.raises(StopIteration):
            scores._assemble(plan, view, size, None, np.empty(size, np.uint8))
        return planned[0]

    assert temporary_bytes((6000, 8000)) < 2 * temporary_bytes((1500, 2000))
    assert jax.default_backend() != "cpu" or temporary_bytes((6000, 8000)) < 60e6
