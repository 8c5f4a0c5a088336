"""VOC masks: exact ids, splits from the lists, and what is said about odd ones."""

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import DataError
from fasseg_jax.importing.formats.voc import voc_colors
from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_photo


@pytest.fixture
def root(tmp_path):
    return tmp_path / "VOCdevkit/VOC2012"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "data"


def write_voc(root, lists, ids=True):
    for name in {name for names in lists.values() for name in names}:
        write_photo(root / f"JPEGImages/{name}.jpg")
        labels = ragged_labels(ord(name))
        labels[0] = 255 if ids else 3
        (root / "SegmentationClass").mkdir(exist_ok=True)
        image = Image.fromarray(labels)
        image.putpalette(voc_colors(256).ravel().tolist())
        (image if ids else image.convert("RGB")).save(root / f"SegmentationClass/{name}.png")
    for split, names in lists.items():
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))


def test_palette_masks_and_lists(root, output):
    write_voc(root, {"train": ["a"], "trainval": ["a", "b"], "val": ["b"], "test": ["c"]})
    (root / "SegmentationClass/c.png").unlink()
    result = run_import(root.parent, output)
    assert not result.problems and result.written == 2
    for split, name in (("training", "a"), ("validation", "b")):
        expected = ragged_labels(ord(name))
        expected[0] = 255
        np.testing.assert_array_equal(np.asarray(Image.open(output / f"annotations/{split}/{name}.png")), expected)
    assert class_names(output)[:3] == ["background", "aeroplane", "bicycle"] and len(class_names(output)) == 21
    # The palette as VOC's development kit documents it.
    assert voc_colors(16).tolist()[1:5] == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert voc_colors(16).tolist()[15] == [192, 128, 128]  # person


def test_rgb_masks_with_a_labelmap(root, output):
    write_voc(root, {"default": ["a", "b"]}, ids=False)
    colors = voc_colors(4).tolist()
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in zip("xyzv", colors, strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines).replace("v:", "void:"))
    assert not run_import(root, output).problems
    assert class_names(output) == ["x", "y", "z"]
    expected = ragged_labels(ord("a"))
    expected[0] = 3
    expected[expected == 3] = 255
    np.testing.assert_array_equal(read_labels(output, "a"), expected)


def test_odd_files(root, output):
    write_voc(root, {"train": list("abcdef")})
    (root / "JPEGImages/a.jpg").unlink()
    (root / "SegmentationClass/b.png").unlink()
    unknown = Image.new("P", (48, 36), 30)
    unknown.putpalette(voc_colors(256).ravel().tolist())
    unknown.save(root / "SegmentationClass/c.png")
    Image.new("P", (48, 35), 0).save(root / "SegmentationClass/d.png")
    (root / "SegmentationClass/e.png").write_bytes(b"no picture")
    Image.new("P", (48, 36)).save(root / "SegmentationClass/x.png")
    result = run_import(root, output)
    said = "\n".join(result.problems)
    assert result.written == 1 and len(result.problems) == 5
    assert "a.png: there is no photo for it" in said
    assert "names 'b', but there is no" in said
    assert "c.png: holds the ids [30], but there are 21 classes" in said
    assert "d.png: its labels are 48x35 pixels" in said
    assert "e.png: cannot be read as a mask" in said
    assert "x.png: is in no list" in result.notes[0]


def test_two_roots(root, output):
    write_voc(root, {"train": ["a"]})
    write_voc(root.with_name("VOC2007"), {"train": ["a"]})
    with pytest.raises(DataError, match="2 folders SegmentationClass"):
        run_import(root.parent, output)
