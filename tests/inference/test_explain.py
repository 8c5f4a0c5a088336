import functools

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from fasseg_jax.config import use_mask2former
from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference.explain import Focus, Query, Selection, explain
from fasseg_jax.inference.explanation_page import (
    _draw_heat,
    _highlight_boxes,
    _highlight_mask,
    draw_explanation,
    heat_colors,
)
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.models.fasseg import build_model
from tests.helpers.tiny import photo, random_variables, tiny_config

SIZE, RESIZED, PADDED = (90, 121), (64, 86), (64, 96)  # photo, network's input without and with padding
GRID = (2, 3)  # at stride 32
QUERIES = 6
CLASSES = load_classes("cityscapes")
# Each kind compiles two networks.
KINDS = ["window", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pixel", "mask2former"))]


@functools.cache
def explained(kind):
    """An explanation by a tiny model of a kind, of arbitrary labels, and what the model itself says and sows."""
    config = tiny_config()
    config.model.decoder.num_queries = QUERIES
    config.model.decoder.num_layers, config.model.decoder.hrca_omega = 5 if kind == "window" else 4, 3
    config.model.decoder.mask_threshold = 0.3
    if kind == "mask2former":
        use_mask2former(config)
        config.model.decoder.num_layers = 4  # of three scales
    else:
        config.model.decoder.hrca_selection = kind
    model = build_model(config.model)
    variables = random_variables(model, PADDED)
    segmenter = Segmenter(config, variables, CLASSES)
    image = photo(*SIZE)
    labels = (np.arange(SIZE[0])[:, None] // 20 + np.arange(SIZE[1]) // 30).astype(np.uint8)
    explanation = explain(segmenter, image, labels, num_queries=QUERIES)
    # The steps of the prediction, by hand.
    network_input = np.asarray(Image.fromarray(image).resize(RESIZED[::-1], Image.BILINEAR), np.float64)
    network_input = (network_input - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    network_input = np.pad(network_input, [(0, 0), (0, PADDED[1] - RESIZED[1]), (0, 0)])[None].astype(np.float32)
    predictions, captured = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))(variables, network_input)
    return explanation, image, labels, predictions, captured["intermediates"]["decoder"]


def inside(boxes, y, x):
    return any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_queries_are_those_of_the_prediction(kind):
    explanation, _, labels, predictions, _ = explained(kind)
    logits = np.asarray(predictions.class_logits[0], np.float64)
    probabilities = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[:, :-1]
    masks = 1 / (1 + np.exp(-np.asarray(predictions.mask_logits[0], np.float64)))
    assert sorted(query.index for query in explanation.queries) == list(range(QUERIES))
    shares = np.zeros(QUERIES)
    rows, columns = RESIZED[0] // 4, (RESIZED[1] + 1) // 4  # cells whose center is in the photo
    for i in range(rows):
        for j in range(columns):
            y, x = int((4 * i + 2) * SIZE[0] / RESIZED[0]), int((4 * j + 2) * SIZE[1] / RESIZED[1])
            parts = probabilities[:, labels[y, x]] * masks[:, i, j]
            shares += parts / parts.sum() / (rows * columns)
    assert sum(query.share for query in explanation.queries) == pytest.approx(1, abs=1e-5)
    found = [query.share for query in explanation.queries]
    assert found == sorted(found, reverse=True)
    for query in explanation.queries:
        np.testing.assert_allclose(query.mask, masks[query.index], atol=1e-5)
        assert query.class_id == probabilities[query.index].argmax()
        assert query.probability == pytest.approx(probabilities[query.index].max(), abs=1e-5)
        assert query.share == pytest.approx(shares[query.index], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_focus_is_the_attention_that_the_model_sows(kind):
    explanation, _, _, _, sown = explained(kind)
    assert [focus.layer for focus in explanation.focus] == list(range(len(sown["attention"])))
    strides = (32, 16, 8) if kind == "mask2former" else (32, 16, 8, 4)
    for focus, attention in zip(explanation.focus, sown["attention"], strict=True):
        assert focus.stride == strides[focus.layer % len(strides)]
        h, w = (side // focus.stride for side in PADDED)
        assert focus.attention.shape == (QUERIES, h, w)
        np.testing.assert_allclose(focus.attention.sum(axis=(1, 2)), 1, atol=1e-5)
        if focus.stride == 4:
            continue
        for number, query in enumerate(explanation.queries):
            expected = np.asarray(attention[0, query.index])
            for token in range(h * w):
                assert focus.attention[number, token // w, token % w] == pytest.approx(expected[token], abs=1e-6)


def test_hrca_windows_are_those_that_the_model_sows():
    explanation, _, _, _, sown = explained("window")
    (selection,) = explanation.selections
    windows = np.asarray(sown["hrca_windows"][0][0])
    assert selection.layer == 3 and len(windows) == 2  # of 6 tokens at stride 32, one in three
    scale_y, scale_x = SIZE[0] / RESIZED[0], SIZE[1] / RESIZED[1]
    for window, (left, top, right, bottom) in zip(windows, selection.boxes, strict=True):
        row, column = window // GRID[1], window % GRID[1]
        assert (top, bottom) == pytest.approx((32 * row * scale_y, 32 * (row + 1) * scale_y))
        assert (left, right) == pytest.approx((32 * column * scale_x, min(32 * (column + 1), RESIZED[1]) * scale_x))
    # The focus of this layer is nowhere else, and its tokens are in the order of the windows, row by row in each.
    focus = explanation.focus[3].attention
    attention = np.asarray(sown["attention"][3][0])
    for number, query in enumerate(explanation.queries):
        expected = np.zeros((16, 24), np.float32)
        for token, value in enumerate(attention[query.index]):
            window, y, x = windows[token // 64], token % 64 // 8, token % 8
            expected[8 * (window // 3) + y, 8 * (window % 3) + x] = value
        np.testing.assert_allclose(focus[number], expected, atol=1e-6)


@pytest.mark.slow
def test_hrca_pixels_are_those_that_the_model_sows():
    explanation, _, _, _, sown = explained("pixel")
    (selection,) = explanation.selections
    tokens = np.asarray(sown["hrca_pixels"][0][0])
    assert selection.boxes.shape == (128, 4)
    corners = [tuple(box) for box in selection.boxes[:, :2].round(3)]  # left and top
    expected = [
        (
            round(min(token % 24 * 4, RESIZED[1]) * SIZE[1] / RESIZED[1], 3),
            round(token // 24 * 4 * SIZE[0] / RESIZED[0], 3),
        )
        for token in tokens
    ]
    assert sorted(corners) == sorted(expected)
    # The most attended come first. At the border tokens have equal scores, and rounding decides their order.
    grid = np.asarray(sown["attention"][0][0]).sum(axis=0).reshape(GRID)
    rows, columns = ((np.arange(8 * side) + 0.5) / 8 - 0.5 for side in GRID)
    scores = np.stack([np.interp(columns, range(GRID[1]), row) for row in grid])
    scores = np.stack([np.interp(rows, range(GRID[0]), column) for column in scores.T], axis=1).ravel()
    score_of = dict(zip(expected, scores[tokens], strict=True))
    in_order = np.array([score_of[corner] for corner in corners])
    assert (np.diff(in_order) < 1e-6).all()
    np.testing.assert_allclose(in_order, np.sort(scores)[::-1][:128], atol=1e-6)
    chosen = set(zip(*np.nonzero(explanation.focus[3].attention[0] > 0), strict=True))
    assert chosen <= {(token // 24, token % 24) for token in tokens}


def texts(monkeypatch, kind):
    """All that is written on a page."""
    written, draw_text = [], ImageDraw.ImageDraw.text
    record = lambda self, at, text, *rest, **options: (
        written.append(text),
        draw_text(self, at, text, *rest, **options),
    )
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    explanation, image, labels, _, _ = explained(kind)
    page = draw_explanation(explanation, image, labels, CLASSES, "photo.jpg", "these classes mean nothing")
    assert page.width > 600
    return explanation, written


def test_page_names_queries_and_layers(monkeypatch):
    explanation, written = texts(monkeypatch, "window")
    assert "photo.jpg" in written and "these classes mean nothing" in written
    for stride, layer in ((32, 0), (16, 1), (8, 2), (4, 3), (32, 4)):
        assert written.count(f"layer {layer} · 1/{stride}") == QUERIES
    for query in explanation.queries:
        assert CLASSES.names[query.class_id] in written
        assert any(f"query {query.index}" in text and f"{query.share:.1%}" in text for text in written)
    assert "layer 3 · HRCA" in written and any(text.startswith("HRCA: the layers at 1/4") for text in written)
    assert any("DFPQ pools" in text for text in written)


@pytest.mark.slow
def test_page_says_what_mask2former_lacks(monkeypatch):
    explanation, written = texts(monkeypatch, "mask2former")
    assert explanation.selections is None and explanation.positional_queries == "learned"
    assert any("No HRCA" in text for text in written)
    assert any("No DFPQ" in text for text in written)


def test_several_views_cannot_be_explained():
    config = tiny_config()
    config.inference.mode = "multi_scale"
    segmenter = Segmenter(config, {}, CLASSES)
    with pytest.raises(ValueError, match="single view.*multi_scale"):
        explain(segmenter, photo(*SIZE), np.zeros(SIZE, np.uint8))


def test_heat_is_where_the_attention_is():
    attention = np.full((1, 4, 6), 0.01, np.float32)
    attention[0, 1, 3] = 0.7
    panel = _draw_heat(np.full((128, 172, 3), 90, np.uint8), Focus(0, 16, attention), 0, RESIZED)
    # The panel shows 86 of the 96 columns; token (1, 3) has its center at pixel (24, 56) of the input.
    y, x = np.unravel_index(panel.astype(int).sum(-1).argmax(), panel.shape[:2])
    assert abs(y - 24 * 128 / 64) <= 1.5 and abs(x - 56 * 172 / 86) <= 1.5
    # The next pixel's center is a 64th of a token away along both axes.
    near = (1 - 1 / 64) ** 2
    strength = near + (1 - near) * 0.01 / 0.7
    expected = 0.85 * heat_colors(np.array(strength)).astype(float) + 0.15 * (12 + 0.42 * 90)
    np.testing.assert_allclose(panel[y, x], expected, atol=1)


def test_photo_is_bright_in_masks_and_windows():
    image = np.random.default_rng(0).integers(100, 256, (*SIZE, 3), np.uint8)
    mask = np.zeros((16, 24), np.float32)
    mask[:, 11:] = 1  # from pixel 44 of 86
    panel = _highlight_mask(image, Query(0, 0, 1.0, 1.0, mask), RESIZED, np.array([200, 0, 0], np.uint8))
    edge = round(44 * SIZE[1] / RESIZED[1])
    gray = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(panel[:, : edge - 5], (12 + 0.42 * gray)[:, : edge - 5, None].repeat(3, -1), atol=1)
    np.testing.assert_allclose(panel[:, edge + 5 :], 0.4 * image[:, edge + 5 :] + [120, 0, 0], atol=1)
    boxes = np.array([[10, 20, 40, 60], [100, 70, 121, 90]], float)
    panel = _highlight_boxes(image, Selection(3, boxes), SIZE)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            if inside(boxes + [1, 1, -1, -1], y, x):
                np.testing.assert_array_equal(panel[y, x], image[y, x])
            elif not inside(boxes, y, x):
                assert panel[y, x, 0] == panel[y, x, 2] < 130
            else:
                np.testing.assert_array_equal(panel[y, x], [248, 140, 20])
