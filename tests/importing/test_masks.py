"""Masks of colors and of 0 and 255: exact labels, blurred edges, layouts, and what is said about odd ones."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fasseg_jax.data.classes import DataError
from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_photo

COLORS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (200, 200, 50)], np.uint8)
TABLE = "name,r,g,b\nVoid,0,0,0\nroad,128,0,0\ngrass,0,128,0\nsign,200,200,50\n"


def write_mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("photo", "mask"),
    [
        ("images/{}.jpg", "masks/{}.png"),
        ("train/{}.jpg", "train_labels/{}_L.png"),
        ("train/images/{}.jpg", "train/masks/{}_mask.png"),
        ("images/train/{}.jpg", "annotations/train/{}.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("{}.jpg", "{}_mask.png"),
        ("{}_sat.jpg", "{}_mask.png"),
    ],
)
def test_color_masks_of_several_layouts(source, output, photo, mask):
    for name in "ab":
        write_photo(source / photo.format(name))
        write_mask(source / mask.format(name), COLORS[ragged_labels(ord(name))])
    (source / "class_dict.csv").write_text(TABLE)
    result = run_import(source, output)
    assert not result.problems and result.written == 2
    assert class_names(output) == ["road", "grass", "sign"]
    np.testing.assert_array_equal(result.classes.palette, COLORS[1:])
    for name in "ab":
        np.testing.assert_array_equal(read_labels(output, name), ragged_labels(ord(name)) - np.uint8(1))  # 0 -> 255


def test_listed_classes_keep_their_ids(source, output):
    write_photo(source / "images/a.jpg")
    write_mask(source / "masks/a.png", COLORS[ragged_labels(0)])
    run_import(source, output, classes=("void", "x", "y", "z"), colors=COLORS)
    np.testing.assert_array_equal(read_labels(output, "a"), ragged_labels(0))


def test_colors_of_no_class(source, output):
    write_photo(source / "images/a.jpg")
    write_mask(source / "masks/a.png", COLORS[ragged_labels(0)])
    listed = {"classes": ("x", "y", "z"), "colors": COLORS[1:]}
    assert "ignore such pixels by --unlabeled=ignore" in run_import(source, output, **listed).problems[0]
    result = run_import(source, output, unlabeled="ignore", **listed)
    count = np.count_nonzero(ragged_labels(0) == 0)
    assert not result.problems and any(f"in {count} pixels are ignored" in note for note in result.notes)
    np.testing.assert_array_equal(read_labels(output, "a"), ragged_labels(0) - np.uint8(1))  # 0 -> 255


def test_blurred_edges_need_a_tolerance(source, output):
    write_photo(source / "images/a.jpg")
    labels = np.zeros((36, 48), np.uint8)
    labels[10:20, 10:30] = 2
    mask = Image.fromarray(COLORS[labels]).filter(ImageFilter.GaussianBlur(0.4))
    (source / "masks").mkdir()
    mask.save(source / "masks/a.png")
    (source / "class_dict.csv").write_text(TABLE)
    result = run_import(source, output)
    assert result.written == 0
    assert "masks/a.png: has the color (0, " in result.problems[0] and "set --tolerance" in result.problems[0]
    assert run_import(source, output.with_name("tolerant"), tolerance=64).written == 1
    np.testing.assert_array_equal(read_labels(output.with_name("tolerant"), "a"), labels - np.uint8(1))


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P"])
def test_black_and_white(source, output, mode):
    write_photo(source / "images/a.jpg")
    expected = ragged_labels(0) > 1
    (source / "masks").mkdir()
    Image.fromarray(expected).convert("L").convert(mode).save(source / "masks/a.png")
    assert not run_import(source, output).problems
    np.testing.assert_array_equal(read_labels(output, "a"), expected)
    assert class_names(output) == ["background", "foreground"]
    run_import(source, output.with_name("named"), classes=("sound", "crack"))
    assert class_names(output.with_name("named")) == ["sound", "crack"]
    with pytest.raises(DataError, match="--classes lists 3"):
        run_import(source, output.with_name("three"), classes=("a", "b", "c"))


def test_gray_values_between(source, output):
    write_photo(source / "images/a.jpg")
    values = np.full((36, 48), 255, np.uint8)
    values[0, :3] = (3, 250, 128)
    write_mask(source / "masks/a.png", values)
    result = run_import(source, output, "binary_masks")
    assert "has the color (3, 3, 3) in 1 pixels, (128, 128, 128) in 1 pixels" in result.problems[0]
    values[0, 2] = 0
    write_mask(source / "masks/a.png", values)
    run_import(source, output.with_name("tolerant"), "binary_masks", tolerance=10)
    np.testing.assert_array_equal(read_labels(output.with_name("tolerant"), "a")[0, :4], [0, 1, 0, 1])


def test_odd_files(source, output):
    for name in ("good", "bare", "twice", "small", "broken"):
        write_photo(source / f"images/{name}.jpg")
    for name in ("good", "alone", "twice"):
        write_mask(source / f"masks/{name}.png", COLORS[ragged_labels(0)])
    write_mask(source / "masks/small.png", COLORS[ragged_labels(0)][:30])
    write_mask(source / "masks/twice.bmp", COLORS[ragged_labels(0)])
    (source / "masks/broken.png").write_bytes(b"")
    (source / "class_dict.csv").write_text(TABLE)
    result = run_import(source, output, "color_masks")
    said = "\n".join(result.problems)
    assert result.written == 1 and len(result.problems) == 5
    assert "bare.jpg: has no mask" in said
    assert "alone.png: there is no photo for this mask" in said
    assert "2 masks have this name" in said
    assert "small.png: its labels are 48x30 pixels" in said
    assert "broken.png: cannot be read as a mask" in said


def test_colors_without_a_table(source, output):
    write_photo(source / "images/a.jpg")
    write_mask(source / "masks/a.png", COLORS[ragged_labels(0)])
    with pytest.raises(DataError, match="give the colors of the classes by --classes"):
        run_import(source, output)
