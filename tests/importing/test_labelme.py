"""labelme files: what is painted, and what is said about odd ones."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import DataError
from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_json, write_photo

SIZE = {"imageHeight": 36, "imageWidth": 48}


def shape(label, points, shape_type="polygon", **fields):
    return {"label": label, "points": points, "shape_type": shape_type, "group_id": None, "flags": {}, **fields}


def write_item(folder, name, shapes, **fields):
    write_photo(folder / f"{name}.jpg")
    write_json(
        folder / f"{name}.json", {"shapes": shapes, "imagePath": f"{name}.jpg", "imageData": None} | SIZE | fields
    )


def mask_shape(label, mask):
    """A mask as labelme stores it: a PNG of the box around it, whose corners are pixels of it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    buffer = io.BytesIO()
    Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]).save(buffer, "png")
    corners = [[float(columns[0]), float(rows[0])], [float(columns[-1]), float(rows[-1])]]
    return shape(label, corners, "mask", mask=base64.b64encode(buffer.getvalue()).decode())


def test_shapes_are_painted_over_each_other(source, output):
    write_item(
        source,
        "a",
        [
            shape("road", [[2, 3], [20, 3], [20, 30], [2, 30]]),
            shape("car", [[10, 5], [15, 9]], "rectangle"),
            shape("__ignore__", [[40, 0], [47, 0], [47, 8], [40, 8]]),
        ],
    )
    write_item(source, "b", [shape("disc", [[24, 18], [24, 8]], "circle")])
    result = run_import(source, output)
    assert class_names(output) == ["background", "car", "disc", "road"]
    expected = np.zeros((36, 48), np.uint8)
    expected[3:31, 2:21] = 3
    expected[5:10, 10:16] = 1
    expected[0:9, 40:48] = 255
    np.testing.assert_array_equal(read_labels(output, "a"), expected)
    rows, columns = np.indices((36, 48))
    distance = np.hypot(rows - 18, columns - 24)
    disc = read_labels(output, "b")
    assert (disc[distance < 9.5] == 2).all() and (disc[distance > 10.5] == 0).all()
    assert result.written == 2 and not result.problems
    assert [note.partition(": ")[2] for note in result.notes] == [
        "overlap: 30 pixels lie in several shapes; the later one has them"
    ]
    assert (output / "images/training/a.jpg").exists() + (output / "images/training/b.jpg").exists() == 1


def test_the_smaller_shape_covers_the_larger_if_asked(source, output):
    small, large = shape("small", [[4, 4], [8, 8]], "rectangle"), shape("large", [[2, 2], [30, 30]], "rectangle")
    write_item(source, "a", [small, large])
    run_import(source, output, overlap="smaller", unlabeled="ignore")
    expected = np.full((36, 48), 255, np.uint8)
    expected[2:31, 2:31] = 0
    expected[4:9, 4:9] = 1
    np.testing.assert_array_equal(read_labels(output, "a"), expected)
    run_import(source, output.with_name("later"), unlabeled="ignore")
    assert read_labels(output.with_name("later"), "a")[5, 5] == 0


def test_masks_come_back_exactly(source, output):
    labels = ragged_labels(0)
    write_item(source, "a", [mask_shape(f"class {index}", labels == index) for index in range(4)])
    run_import(source, output, unlabeled="ignore")
    np.testing.assert_array_equal(read_labels(output, "a"), labels)


def test_odd_shapes_are_reported_each_with_its_reason(source, output):
    write_item(
        source,
        "a",
        [
            shape("road", [[2, 3], [20, 3]]),
            shape("road", [[1, 1], [30, 30]], "line"),
            shape("road", [[1, 1], [float("nan"), 3], [4, 4]]),
            shape("road", [[100, 100], [120, 100], [120, 120]]),
            shape("road", [[0, 0], [1e30, 0], [0, 9]]),
            shape("", [[0, 0], [9, 0], [9, 9]]),
            shape("road", [[-5, 0], [9, 0], [9, 9]]),
            shape("road", [[10, 10], [30, 30], [30, 10], [10, 30]]),
            shape("road", "points"),
            shape("road", [[1, 1], [4, 4]], "mask", mask="!"),
            7,
        ],
    )
    result = run_import(source, output)
    assert [note.removeprefix(f"{source / 'a.json'}: ") for note in result.notes] == [
        "dropped shape 1 ('road'): has 2 points; a polygon needs 3",
        "dropped shape 2 ('road'): is of type 'line', which has no area",
        "dropped shape 3 ('road'): has coordinates that are no numbers",
        "dropped shape 4 ('road'): covers no pixel of the photo",
        "dropped shape 5 ('road'): has a coordinate of 1e+30 pixels",
        "dropped shape 6 (ignored): has no label",
        "clipped shape 7 ('road'): it reaches 5 pixels beyond the photo",
        "shape 8 ('road') crosses itself; filled by the even-odd rule",
        "dropped shape 9 ('road'): its points are no pairs of numbers: points",
        "dropped shape 10 ('road'): its mask is no base64 picture",
        "dropped shape 11 (ignored): has no label",
    ]
    assert (output / "import-report.txt").read_text().splitlines() == list(result.notes)
    assert read_labels(output, "a")[12, 20] == 0 and read_labels(output, "a")[20, 12] == 1  # beside and in the bow tie


def test_thin_parts_that_run_back_along_a_line_do_not_cross(source, output):
    write_item(source, "a", [shape("pole", [[5, 5], [20, 5], [20, 15], [20, 30], [20, 15], [5, 15]])])
    assert not run_import(source, output).notes


def test_files_that_cannot_be_imported_are_named(source, output):
    write_item(source, "good", [shape("road", [[0, 0], [9, 0], [9, 9]])])
    write_item(source, "gone", [])
    (source / "gone.jpg").unlink()
    write_item(source, "small", [], imageWidth=640)
    write_item(source, "first", [])
    write_json(source / "second.json", {"shapes": [], "imagePath": "first.jpg"} | SIZE)
    (source / "text.json").write_text("{")
    (source / "latin.json").write_bytes(b'{"shapes": [], "imagePath": "\xe4.jpg"}')
    write_json(source / "other.json", {"name": 1})
    write_item(source, "broken", [])
    (source / "broken.jpg").write_bytes((source / "good.jpg").read_bytes()[:700])
    write_photo(source / "bare.jpg")
    result = run_import(source, output)
    assert result.written == 1
    said = "\n".join(result.problems)
    for expected in (
        f"{source}/gone.json: there is no photo 'gone.jpg' below {source}; add it, or name its folder by --photos",
        f"{source}/small.json: its labels are 640x36 pixels, the photo {source}/small.jpg 48x36",
        f"{source}/first.jpg: 2 annotations are for this photo ({source}/first.json, {source}/second.json)",
        f"{source}/text.json, line 1: is no JSON",
        f"{source}/latin.json, line 1: is no UTF-8 text",
        f"{source}/other.json is no labelme file: the field 'shapes' must be of type list",
        f"{source}/broken.jpg: cannot be read as a photo",
    ):
        assert expected in said, said
    assert len(result.problems) == 7
    assert f"{source}/bare.jpg: has no labelme file, and is left out" in result.notes


def test_a_photo_in_the_file_is_taken_if_there_is_no_other(source, output):
    pixels = write_photo(source / "p.png")
    data = base64.b64encode((source / "p.png").read_bytes()).decode()
    write_json(
        source / "a.json",
        {"shapes": [shape("x", [[0, 0], [9, 0], [9, 9]])], "imagePath": "gone.jpg", "imageData": data} | SIZE,
    )
    (source / "p.png").unlink()
    run_import(source, output)
    np.testing.assert_array_equal(np.asarray(Image.open(output / "images/training/a.png")), pixels)


def test_classes_may_be_listed(source, output):
    write_item(source, "a", [shape("b", [[0, 0], [9, 9]], "rectangle"), shape("x", [[20, 20], [29, 29]], "rectangle")])
    (source / "labels.txt").write_text("__ignore__\n_background_\nz\nb\n")
    run_import(source, output)
    assert class_names(output) == ["_background_", "z", "b", "x"]
    result = run_import(source, output.with_name("listed"), classes=("b", "background"))
    labels = read_labels(output.with_name("listed"), "a")
    assert (labels[5, 5], labels[15, 15], labels[25, 25]) == (0, 1, 255)
    assert "shape 2 ('x'): its class is not listed; its pixels are ignored" in result.notes[0]


def test_no_annotations(source, output):
    source.mkdir()
    with pytest.raises(DataError, match="has no format that is known"):
        run_import(source, output)
    write_photo(source / "a.jpg")
    with pytest.raises(DataError, match="no photo can be imported"):
        run_import(source, output, "labelme")


def test_a_path_to_another_folder(source, output):
    write_photo(source / "photos/a.jpg")
    shapes = [shape("x", [[0, 0], [9, 0], [9, 9]])]
    write_json(source / "labels/a.json", {"shapes": shapes, "imagePath": "..\\photos\\a.jpg"} | SIZE)
    assert not run_import(source, output).notes
    assert (output / "images/training/photos/a.jpg").exists()


@pytest.mark.parametrize("width", [None, "48", float("inf"), -1, [], True, 10**400])
def test_odd_sizes_count_as_none(source, output, width):
    write_item(source, "a", [shape("x", [[0, 0], [9, 0], [9, 9]])], imageWidth=width)
    assert run_import(source, output).written == 1
