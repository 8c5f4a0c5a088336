"""Overlays and comparisons show the palette's colors, borders, and a legend of the classes found."""

import numpy as np
import pytest

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.legend import class_shares
from fasseg_jax.visualization.overlay import OPACITY, PANEL_GAP, PANEL_WIDTH, draw_comparison, draw_overlay
from fasseg_jax.visualization.text import WARNING_RED

CLASSES = ClassTable(
    ("wall", "sky", "a class of an uncommonly long name, which hardly any legend will have room for", "unseen"),
    np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200], [123, 45, 67]], np.uint8),
)


def picture_of(size, warning=None):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = np.zeros(size, np.uint8)
    labels[size[0] // 2 :] = 1
    labels[: size[0] // 2, size[1] // 2 :] = 2
    return image, labels, np.asarray(draw_overlay(image, labels, CLASSES, warning))


def shows(picture, color):
    return (picture == np.asarray(color)).all(-1).any()


def test_blends_the_palette_and_draws_borders():
    image, labels, picture = picture_of((400, 600))
    blended = picture[:400, :600]
    expected = (1 - OPACITY) * image + OPACITY * CLASSES.palette[labels]
    border = np.zeros(labels.shape, bool)
    border[199] = True  # the last row above the change, one pixel wide in a photo of this size
    border[:200, 299] = True
    np.testing.assert_allclose(blended[~border], expected[~border], atol=0.51)
    np.testing.assert_array_equal(blended[border], 255)


@pytest.mark.parametrize("size", [(400, 600), (8, 8), (37, 2500), (2500, 37), (1, 300), (1500, 2000)], ids=str)
def test_legend_shows_the_classes_found(size):
    _, labels, picture = picture_of(size)
    enlargement = max(1, 256 // max(size))
    legend = picture[size[0] * enlargement :]
    for class_id, color in enumerate(CLASSES.palette):
        assert shows(legend, color) == (class_id in labels)
    assert not shows(legend, WARNING_RED)
    # Nothing touches the edges: names that are too long are cut.
    for edge in (legend[:, :10], legend[:, -10:], legend[-5:]):
        assert (edge == 255).all()


def test_small_photos_are_enlarged():
    image, labels, picture = picture_of((8, 8))
    blended = (1 - OPACITY) * image + OPACITY * CLASSES.palette[labels]
    # The middles of the enlarged pixels, away from borders.
    np.testing.assert_allclose(picture[16:256:32, 16:256:32], blended, atol=0.51)


def test_warning_is_written():
    _, _, with_warning = picture_of((400, 600), "these classes mean nothing " * 8)
    _, _, without = picture_of((400, 600))
    assert shows(with_warning, WARNING_RED)
    assert len(with_warning) > len(without)


def test_shares_are_sorted():
    labels = np.array([[2, 2, 2, 0], [2, 0, 1, 2]], np.uint16)
    assert class_shares(labels, 4) == [(2, 5 / 8), (0, 2 / 8), (1, 1 / 8)]


def test_comparison_shows_photo_truth_and_prediction():
    """At the panels' own size: the photo as it is, labels blended, ignored pixels as in the photo."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, PANEL_WIDTH, 3), np.uint8)
    truth = np.ones((40, PANEL_WIDTH), np.uint8)
    truth[20:] = 255
    picture = draw_comparison([(image, truth, np.zeros_like(truth))], CLASSES)
    top = next(y for y in range(len(picture)) if (picture[y, :PANEL_WIDTH] == image[0]).all())
    panels = [picture[top : top + 40, x : x + PANEL_WIDTH] for x in range(0, picture.shape[1], PANEL_WIDTH + PANEL_GAP)]

    def blended(class_id):
        return (1 - OPACITY) * image + OPACITY * CLASSES.palette[class_id]

    np.testing.assert_array_equal(panels[0], image)
    np.testing.assert_allclose(panels[1][:18], blended(1)[:18], atol=1)  # above the border that ends the class
    np.testing.assert_array_equal(panels[1][21:], image[21:])
    np.testing.assert_allclose(panels[2], blended(0), atol=1)
    legend = picture[top + 40 :]
    assert shows(legend, CLASSES.palette[0]) and shows(legend, CLASSES.palette[1])
    assert not shows(legend, CLASSES.palette[3])
