"""YOLO segmentation: labels against the outlines' own pixels, and what is said about odd files."""

import numpy as np
import pytest

from fasseg_jax.data.classes import DataError
from tests.helpers.import_cases import class_names, read_labels, run_import, write_photo

YAML = "path: /content/datasets/mine\ntrain: images/train\nval: images/val\nnames:\n  0: car\n  1: road sign\n"


def write_yolo(source, labels, yaml=YAML, images="images/{split}", texts="labels/{split}"):
    for name, lines in labels.items():
        split, _, stem = name.partition("/")
        write_photo(source / images.format(split=split) / f"{stem}.jpg")
        if lines is not None:
            path = source / texts.format(split=split) / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines))
    (source / "data.yaml").write_text(yaml)


def outline(class_id, left, top, right, bottom):
    """A box through the centers of its pixels, as OpenCV's contours and Ultralytics' converters write it."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return " ".join([str(class_id), *(f"{x / 48:.6f} {y / 36:.6f}" for x, y in corners)])


def test_outlines_of_every_place_and_size(source, output):
    """One box of each size and place along the diagonal: rounded shares must not move an edge."""
    expected = {}
    labels = {}
    for index in range(30):
        labels[f"train/{index}"] = [outline(1, index, index // 2, index + 3 + index % 5, index // 2 + 7)]
        expected[index] = np.zeros((36, 48), np.uint8)
        expected[index][index // 2 : index // 2 + 8, index : index + 4 + index % 5] = 2
    write_yolo(source, labels | {"val/x": [outline(0, 0, 0, 47, 35)]})
    assert not run_import(source, output).problems
    assert class_names(output) == ["background", "car", "road sign"]
    for index, labels in expected.items():
        np.testing.assert_array_equal(read_labels(output, str(index)), labels)
    assert (output / "images/validation/x.jpg").exists()
    assert (read_labels(output, "x") == 1).all()


@pytest.mark.parametrize("images", ["{split}/images", "images/{split}"])
def test_layouts(source, output, images):
    yaml = f"train: ../{images.format(split='train')}\nval: ../{images.format(split='val')}\nnames: [car]\n"
    labels = {"train/a": [outline(0, 1, 1, 9, 9)], "val/b": None}
    write_yolo(source, labels, yaml, images, images.replace("images", "labels"))
    result = run_import(source, output)
    assert result.written == 2 and not result.problems
    assert np.count_nonzero(read_labels(output, "a")) == 81
    assert len(result.notes) == 1 and "as YOLO trains it" in result.notes[0]


def test_lists_of_files(source, output):
    write_yolo(
        source, {"train/a": [outline(0, 1, 1, 9, 9)], "train/b": []}, "train: train.txt\nval: val.txt\nnames: [car]"
    )
    (source / "train.txt").write_text("./images/train/a.jpg\n")
    (source / "val.txt").write_text("/home/me/images/train/b.jpg\n")
    run_import(source, output)
    assert (output / "images/training/images/train/a.jpg").exists()
    assert (output / "images/validation/images/train/b.jpg").exists()


def test_odd_lines_and_files(source, output):
    lines = [
        "2 0 0 1 0 1 1",
        "0 0.5 0.5 0.2 0.2",
        "0 0 0 1 0 1",
        "0 0 0 x 0 1 1",
        "0 0 0 1.5 0 1.5 1",
        "car 0 0 1 0 1 1",
        "0",
    ]
    write_yolo(source, {"train/a": lines, "val/b": []})
    (source / "labels/train/gone.txt").write_text("")
    (source / "labels/val/b.txt").write_bytes(b"0 \xff")
    result = run_import(source, output)
    assert [note.split("a.txt: ")[1] for note in result.notes] == [
        "dropped line 1 (ignored): its class '2' is none of 0 to 1",
        "dropped line 2 ('car'): is a box, not an outline",
        "dropped line 3 ('car'): holds 5 numbers, which are no pairs x y",
        "dropped line 4 ('car'): holds something that is no number",
        "clipped line 5 ('car'): it reaches 24 pixels beyond the photo",
        "dropped line 6 (ignored): its class 'car' is none of 0 to 1",
        "dropped line 7 ('car'): has 0 points; a polygon needs 3",
    ]
    assert len(result.problems) == 2
    assert "b.txt, line 1: is no UTF-8 text" in result.problems[0]
    assert "gone.txt: there is no photo for it" in result.problems[1]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [", "holds no data.yaml|is no YAML"),
        ("train: images/train\nnames: {1: car}", "run from 0"),
        ("train: images/train\nnames: 3", "must list"),
        ("train: nowhere\nnames: [car]", "there is no .*nowhere"),
        ("names: [car]", "holds no data.yaml"),
    ],
)
def test_odd_yaml(source, output, yaml, message):
    write_yolo(source, {"train/a": []}, yaml)
    with pytest.raises(DataError, match=message):
        run_import(source, output, "yolo")
