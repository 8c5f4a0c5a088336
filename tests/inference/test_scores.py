"""Scores and labels of a photo against PyTorch's order of operations, written in plain numpy and float64."""

import jax
import numpy as np
import pytest

from fasseg_jax.config import base_config
from fasseg_jax.inference import scores, tiles
from fasseg_jax.inference.scores import Canvas, ViewPrediction
from fasseg_jax.inference.tiles import plan_axis
from fasseg_jax.inference.views import PhotoViews, Placement, Span, inference_settings


def whole(resized, flipped=False, weight=1.0):
    """A view of the whole photo."""
    rows, columns = Span.whole(resized[0]), Span.whole(resized[1], flipped)
    return Placement(rows, columns, weight, tuple(side + -side % 32 for side in resized))


def random_view(placement, num_queries=7, num_classes=5, seed=0):
    """A prediction of random classes and masks."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.standard_normal((placement.padded[0] // 4, placement.padded[1] // 4, num_queries))
    classes = rng.dirichlet(np.full(num_classes + 1, 0.3), num_queries)[:, :-1]
    return ViewPrediction(classes.astype(np.float32), logits.astype(np.float32))


def paint(placements, views, size, scores=False):
    canvas = Canvas(size, placements, views[0].class_probabilities.shape[1], scores)
    for view in views:
        canvas.add(view)
    return canvas.finish()


def interpolation_matrix(source, target):
    """(target, source) matrix of a bilinear resize with half-pixel centers, clamped at the border."""
    matrix = np.zeros((target, source))
    for row in range(target):
        position = min(max((row + 0.5) * source / target - 0.5, 0), source - 1)
        low = int(np.floor(position))
        matrix[row, low] += 1 - (position - low)
        matrix[row, min(low + 1, source - 1)] += position - low
    return matrix


def reference_scores(placements, views, size):
    """(H, W, K): masks to the padded size, product, padding cut; the mean of windows, resized; the sum of views."""
    resized_photos = {}  # sums and counts of the windows of a resized photo
    for placement, view in zip(placements, views, strict=True):
        masks = np.asarray(view.mask_logits, np.float64)
        height, width, _ = masks.shape
        up_y, up_x = interpolation_matrix(height, 4 * height), interpolation_matrix(width, 4 * width)
        masks = np.einsum("yh,hwq,xw->yxq", up_y, masks, up_x, optimize=True)
        padded = np.einsum("qk,yxq->yxk", view.class_probabilities, 1 / (1 + np.exp(-masks)), optimize=True)
        rows, columns = placement.rows, placement.columns
        picture = padded[: rows.length, : columns.length]
        if columns.flipped:
            picture = picture[:, ::-1]
        key = rows.resized, columns.resized, columns.flipped, placement.weight
        total, count = resized_photos.setdefault(
            key, (np.zeros((rows.resized, columns.resized, picture.shape[2])), np.zeros((*key[:2], 1)))
        )
        window = slice(rows.start, rows.start + rows.length), slice(columns.start, columns.start + columns.length)
        total[window] += picture
        count[window] += 1
    scores = 0
    for (h, w, _, weight), (total, count) in resized_photos.items():
        resize_y, resize_x = interpolation_matrix(h, size[0]), interpolation_matrix(w, size[1])
        scores = scores + weight * np.einsum("Yy,yxk,Xx->YXk", resize_y, total / count, resize_x, optimize=True)
    return scores


def assert_labels(labels, expected_scores, margin=1e-5):
    best = np.sort(expected_scores, axis=-1)
    decided = best[..., -1] - best[..., -2] > margin
    np.testing.assert_array_equal(labels[decided], expected_scores.argmax(-1)[decided])
    assert decided.mean() > 0.95
    assert len(np.unique(labels)) > 1


def check(placements, size, **options):
    views = [random_view(placement, seed=seed, **options) for seed, placement in enumerate(placements)]
    expected = reference_scores(placements, views, size)
    actual = paint(placements, views, size, scores=True)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    labels = paint(placements, views, size)
    assert labels.dtype == (np.uint8 if expected.shape[2] <= 255 else np.uint16)
    assert_labels(labels, expected)


def placements_of(size, mode, **settings):
    """The views of a photo of `size` in a mode, at about a tenth of the usual sizes."""
    config = base_config()
    config.inference.update(mode=mode, short_side=48, max_long_side=120)
    config.inference.multi_scale.update(short_sides=(24, 48, 88), max_long_side=200)
    config.inference.sliding.update(window=(40, 64))
    for name, value in settings.items():
        config.inference.sliding[name] = value
    config.inference = inference_settings(config)
    return PhotoViews(np.zeros((*size, 3), np.uint8), config).placements


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
    check([whole(resized)], size)


def test_tiles_of_columns(monkeypatch):
    monkeypatch.setattr(tiles, "MAX_TILE_WIDTH", 64)
    for resized, size in [((64, 90), (70, 500)), ((64, 90), (70, 130)), ((32, 400), (20, 100))]:
        check([whole(resized)], size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(48, 64), (47, 129), (150, 101), (20, 31)], ids=str)
def test_several_sizes_and_flips(size):
    placements = placements_of(size, "multi_scale")
    assert len(placements) == 6
    assert sum(placement.weight for placement in placements) == pytest.approx(1)
    check(placements, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "settings", "num_windows"),
    [
        ((40, 64), {}, 1),
        ((20, 90), {}, 2),  # lower than a window
        ((41, 65), {}, 4),
        ((133, 301), {}, 5 * 7),
        ((133, 301), {"overlap": 0.0}, 4 * 5),
        ((133, 301), {"overlap": 0.8}, 13 * 21),
        ((133, 301), {"short_side": 60}, 2 * 3),  # resized first; max_long_side holds
    ],
    ids=str,
)
def test_sliding_windows(size, settings, num_windows, monkeypatch):
    monkeypatch.setattr(tiles, "MIN_TILE_WIDTH", 16)
    placements = placements_of(size, "sliding", **settings)
    assert len(placements) == num_windows
    check(placements, size)


def test_small_tiles_where_scores_are_kept(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_BYTES", 2**14)
    monkeypatch.setattr(tiles, "MIN_TILE_WIDTH", 16)
    check(placements_of((90, 200), "multi_scale"), (90, 200))


def test_windows_are_let_go():
    """No more than three rows of windows are in memory: two that a row of tiles lies in, and the one that arrives."""
    placements = placements_of((400, 64), "sliding", overlap=0.5)
    assert len(placements) == 19
    canvas = Canvas((400, 64), placements, 5)
    most = 0
    for placement in placements:
        canvas.add(random_view(placement))
        most = max(most, len(canvas._views))
    canvas.finish()
    assert most <= 3
    assert not canvas._views


def test_missing_views_are_noticed():
    placements = placements_of((90, 90), "multi_scale")
    canvas = Canvas((90, 90), placements, 5)
    canvas.add(random_view(placements[0]))
    with pytest.raises(AssertionError, match="views are missing"):
        canvas.finish()


def test_first_of_equal_classes_wins():
    placement = whole((32, 32))
    view = random_view(placement)
    same = np.zeros_like(view.class_probabilities)
    same[:, 2:4] = 0.5
    labels = paint([placement], [ViewPrediction(same, view.mask_logits)], (50, 40))
    np.testing.assert_array_equal(labels, np.full((50, 40), 2))


def test_more_than_255_classes():
    check([whole((32, 64))], (40, 70), num_queries=12, num_classes=300)


def test_rows_at_once_give_the_same():
    """As other devices than CPUs take them."""
    placement = whole((64, 96))
    view = random_view(placement)
    rows, columns = (
        plan_axis(span, span.length, span.length, 32, 48)[0] for span in (placement.rows, placement.columns)
    )
    arguments = None, view.class_probabilities, view.mask_logits, np.float32(1), rows, columns
    inside = np.ones(32, np.float32)
    (labels, uncertainty), others = (scores._label_tile(*arguments, row_by_row, inside) for row_by_row in (True, False))
    np.testing.assert_array_equal(labels, others[0])
    np.testing.assert_allclose(uncertainty, others[1], rtol=1e-6)


def matrix_of(taps, num_sources):
    """The (n, num_sources) matrix of an interpolation."""
    matrix = np.zeros((len(taps.low), num_sources))
    rows = np.arange(len(taps.low))
    matrix[rows, taps.low] += taps.low_weight
    matrix[rows, taps.high] += taps.high_weight
    return matrix


@pytest.mark.slow
def test_every_scale_fills_its_tiles():
    """The bound on the sources of a tile holds for any two lengths, also where rounding moves a position."""
    for source in (1, 2, 31, 32, 33, 64, 100, 512):
        padded = source + -source % 32
        upsample = interpolation_matrix(padded // 4, padded)[:source]
        for target in range(1, 200):
            flipped = target % 2 == 0
            expected = interpolation_matrix(source, target) @ (upsample[::-1] if flipped else upsample)
            plans = plan_axis(Span.whole(source, flipped), padded, target, 16, 32)
            tiles = [matrix_of(plan.to_photo, 32) @ matrix_of(plan.from_masks, padded // 4) for plan in plans]
            np.testing.assert_allclose(np.concatenate(tiles)[:target], expected, atol=1e-6)


def test_photos_of_similar_sizes_share_compiled_tiles():
    placement = whole((128, 171))
    view = random_view(placement, seed=2)
    before = scores._label_tile._cache_size()
    for size in [(384, 512), (383, 511), (382, 505), (390, 520), (375, 500), (360, 480), (388, 517)]:
        paint([placement], [view], size)
    assert scores._label_tile._cache_size() - before <= 4


def test_memory_does_not_grow_with_the_photo():
    """The temporary memory of a compiled tile, as XLA plans it, for photos of 1 and of 48 megapixels."""

    def temporary_bytes(size, placements):
        planned = []

        def plan(function):
            def planning(*arguments):
                planned.append(function.lower(*arguments).compile().memory_analysis())
                raise StopIteration

            return planning

        for name in ("_label_tile", "_add_tile"):
            patch.setattr(scores, name, plan(getattr(scores, name)))
        with pytest.raises(StopIteration):
            paint(placements, [random_view(placement, num_classes=20) for placement in placements], size)
        patch.undo()
        return planned[0].temp_size_in_bytes + planned[0].output_size_in_bytes

    with pytest.MonkeyPatch.context() as patch:
        for placements in ([whole((128, 171))], [whole((128, 171), weight=0.5), whole((128, 171), True, 0.5)]):
            small, large = (temporary_bytes(size, placements) for size in ((1500, 2000), (6000, 8000)))
            assert large < 2 * small
            assert jax.default_backend() != "cpu" or large < 80e6
