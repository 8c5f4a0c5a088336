"""The uncertainty of a photo: equal to that of its scores in plain numpy, whatever the tiles, views and batches."""

import numpy as np
import pytest

from fasseg_jax.inference import tiles
from fasseg_jax.inference.scores import Canvas, ViewPrediction
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import Placement, Span
from tests.helpers.tiny import photo, tiny_model


def expected_uncertainty(scores):
    """Of (H, W, K) scores."""
    scores = scores.astype(np.float64)
    return (1 - np.square(scores / scores.sum(axis=-1, keepdims=True)).sum(axis=-1)).mean()


def paint(view, placement, size, **options):
    canvas = Canvas(size, [placement], view.class_probabilities.shape[1], **options)
    canvas.add(view)
    return canvas.finish(), canvas.uncertainty


def whole_view(classes, masks, height, width):
    placement = Placement(Span.whole(height), Span.whole(width), 1.0, (height, width))
    view = ViewPrediction(np.asarray(classes, np.float32), np.asarray(masks, np.float32))
    return view, placement


@pytest.mark.parametrize("size", [(64, 96), (37, 301), (200, 130)], ids=str)
def test_equals_that_of_the_scores(size, monkeypatch):
    """Tiles are small here, and reach beyond the photo at both edges."""
    monkeypatch.setattr(tiles, "MAX_TILE_WIDTH", 64)
    rng = np.random.default_rng(0)
    classes = rng.dirichlet(np.full(6, 0.3), 7)[:, :-1]
    view, placement = whole_view(classes, 4 * rng.standard_normal((16, 24, 7)), 64, 96)
    scores, nothing = paint(view, placement, size, scores=True)
    labels, uncertainty = paint(view, placement, size, uncertainty=True)
    assert nothing is None and paint(view, placement, size)[1] is None
    np.testing.assert_allclose(uncertainty, expected_uncertainty(scores), rtol=2e-6)
    np.testing.assert_array_equal(labels, paint(view, placement, size)[0])


@pytest.mark.parametrize(
    ("classes", "logit", "expected"),
    [
        ([[1, 0, 0]], 50, 0),  # one query claims all pixels for one class
        ([[1, 0, 0]] * 3, 50, 0),  # three queries that agree
        ([[0.5, 0.5, 0]], 50, 0.5),  # a tie of two classes
        ([[0.25] * 4], 50, 0.75),  # and of four
        ([[0.25] * 4], -60, 0.75),  # also if no query claims a pixel, and squares of scores would underflow
        ([[0.6, 0.2, 0]], 0, 1 - 0.75**2 - 0.25**2),
        ([[1, 0, 0], [0, 1, 0]], 0, 0.5),
        ([[1, 0, 0]], -200, 1),  # all scores are 0
        ([[0.5]], 50, 0),  # of one class there is no doubt
    ],
)
def test_its_scale(classes, logit, expected):
    view, placement = whole_view(classes, np.full((8, 8, len(classes)), logit), 32, 32)
    np.testing.assert_allclose(paint(view, placement, (45, 50), uncertainty=True)[1], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["single", "multi_scale", "sliding"])
def test_of_a_photo(mode):
    config, variables = tiny_model()
    config = config.copy_and_resolve_references()
    config.inference.mode = mode
    segmenter = Segmenter(config, variables)
    photos = {"a": photo(64, 96), "b": photo(80, 150, seed=1)}
    for key, result in segmenter.results(photos.items(), batch_size=2, uncertainty=True):
        both = segmenter(photos[key], scores=True, uncertainty=True)
        assert result.uncertainty == both.uncertainty
        np.testing.assert_allclose(both.uncertainty, expected_uncertainty(both.scores), rtol=2e-6)
        assert segmenter(photos[key]).uncertainty is None
