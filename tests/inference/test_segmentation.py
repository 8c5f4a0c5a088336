"""How a result shows itself, and the lines of docs/predicting.md that hand it to other libraries."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference.segmentation import Segmentation
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.visualization.overlay import draw_overlay
from tests.helpers import ROOT
from tests.helpers.tiny import photo, tiny_model

CLASSES = load_classes("cityscapes")


def result(height, width):
    labels = (np.arange(height * width).reshape(height, width) * 19 // (height * width)).astype(np.uint8)
    return Segmentation(labels, image=photo(height, width), classes=CLASSES)


def test_a_notebook_shows_the_overlay():
    shown = Image.open(io.BytesIO(result(300, 400)._repr_png_()))
    expected = draw_overlay(photo(300, 400), result(300, 400).labels, CLASSES)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))
    np.testing.assert_array_equal(np.asarray(result(300, 400).overlay()), np.asarray(expected))


def test_large_photos_are_shown_smaller():
    shown = Image.open(io.BytesIO(result(700, 2100)._repr_png_()))
    assert shown.width == 700 and shown.height > 234
    assert result(700, 2100).overlay().width == 2100


def test_without_the_photo_there_is_only_text():
    bare = Segmentation(result(30, 40).labels)
    assert bare._repr_png_() is None
    with pytest.raises(ValueError, match="needs the photo and the classes"):
        bare.overlay()
    assert "image=" not in repr(result(30, 40))


@pytest.mark.slow
def test_the_segmenter_gives_all_that_is_shown():
    image = photo(64, 96)
    segmentation = Segmenter(*tiny_model(), CLASSES)(image)
    assert segmentation.image is image and segmentation.classes == CLASSES
    assert segmentation._repr_png_()[:4] == b"\x89PNG"


def test_lines_of_the_documentation():
    """Only Pillow's are run; the other libraries are not among the requirements of the tests."""
    page = (ROOT / "docs/predicting.md").read_text("utf-8")
    code = re.search(r"```python\n(# Pillow.*?)```", page, re.S)[1]
    parts = {part.partition("\n")[0].split(",")[0]: part.partition("\n")[2] for part in code.split("# ")[1:]}
    assert parts.keys() == {"Pillow", "supervision", "xarray"}
    segmentation = result(30, 40)
    names = {"result": segmentation, "Image": Image, "np": np}
    exec(parts["Pillow"], names)
    np.testing.assert_array_equal(np.asarray(names["picture"]), segmentation.labels)
    colors = np.asarray(names["picture"].convert("RGB"))
    np.testing.assert_array_equal(colors, CLASSES.palette[segmentation.labels])
