"""Label Studio exports: brush masks against its own converter, outlines, and what is said about odd ones."""

import numpy as np
import pytest

from fasseg_jax.importing.brush_runs import decode_brush
from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_json, write_photo

# label_studio_sdk.converter.brush.mask2rle (Apache-2.0) wrote this for `GOLDEN_MASK`.
GOLDEN = (
    *(0, 0, 1, 140, 57, 27, 252, 127, 249, 124, 3, 11, 255, 225, 48, 12, 47, 255, 132, 192, 39, 255, 140, 2, 223, 254),
    *(19, 0, 194, 255, 250, 28, 2, 63, 240),
)
GOLDEN_MASK = np.zeros((9, 11), bool)
GOLDEN_MASK[2:6, 3:9] = True
GOLDEN_MASK[4, 5] = False
GOLDEN_MASK[0, 0] = GOLDEN_MASK[8, 10] = True


def encode_brush(mask):
    """A mask in the bits of rle-pack: pairs of runs alternate, and a pair of literal values now and then."""
    values = np.repeat(mask.ravel() * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    begin = 0
    while begin < len(values):
        run = int(np.argmax(np.append(values[begin:] != values[begin], True)))
        if run < 8:
            bits += f"0{1:02b}{run - 1:04b}" + f"{values[begin]:08b}" * run
        else:
            bits += f"1{3:02b}{run - 1:016b}{values[begin]:08b}"
        begin += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]


def region(kind, label, number=0, **value):
    key = f"{kind}labels"
    result = {
        "id": f"r{number}",
        "type": key,
        "value": {key: [label]} | value,
        "original_width": 48,
        "original_height": 36,
    }
    return result


def task(number, image, results, **fields):
    return {"id": number, "data": {"text": "x", "image": image}, "annotations": [{"result": results} | fields]}


def test_brush_masks_are_those_of_label_studio():
    np.testing.assert_array_equal(decode_brush(list(GOLDEN), (9, 11)), GOLDEN_MASK)
    for broken in (GOLDEN[:-3], GOLDEN[:3], (256, *GOLDEN[1:]), "text", (1, *GOLDEN[1:])):
        with pytest.raises(ValueError, match="its brush mask"):
            decode_brush(list(broken) if broken != "text" else broken, (9, 11))


def test_brush_masks_come_back_exactly(source, output):
    labels = ragged_labels(5)
    write_photo(source / "photos/a.jpg")
    results = [region("brush", f"class {k}", k, format="rle", rle=encode_brush(labels == k)) for k in range(4)]
    write_json(source / "export.json", [task(1, "/data/upload/3/0123abcd-a.jpg", results)])
    assert not run_import(source, output, unlabeled="ignore").problems
    np.testing.assert_array_equal(read_labels(output, "photos/a"), labels)


def test_outlines_in_percent(source, output):
    for name in ("a b.jpg", "c.jpg", "d.jpg"):
        write_photo(source / "photos" / name)
    corners = [(3, 4), (40, 4), (40, 30), (3, 30)]
    percent = [[round(x / 48 * 100, 6), round(y / 36 * 100, 6)] for x, y in corners]
    box = {"x": 50, "y": 25, "width": 25, "height": 50}
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 10, "rotation": 90}
    split_label = [
        region("polygon", "p", 1, points=percent) | {"type": "polygon", "value": {"points": percent}},
        {"id": "r1", "type": "labels", "value": {"labels": ["p"]}},
        {"type": "choices", "value": {"choices": ["blurred"]}},
    ]
    write_json(
        source / "export.json",
        [
            task(1, "/data/local-files/?d=photos/a%20b.jpg", split_label),
            task(2, "s3://bucket/far/c.jpg", [region("rectangle", "q", **box)]),
            task(3, "http://localhost:8080/data/d.jpg?x=1", [region("ellipse", "e", **ellipse)]),
        ],
    )
    result = run_import(source, output)
    assert not result.problems and not result.notes
    assert class_names(output) == ["background", "e", "p", "q"]
    expected = np.zeros((36, 48), np.uint8)
    expected[4:31, 3:41] = 2
    np.testing.assert_array_equal(read_labels(output, "photos/a b"), expected)
    expected = np.zeros((36, 48), np.uint8)
    expected[9:28, 24:37] = 3
    np.testing.assert_array_equal(read_labels(output, "photos/c"), expected)
    rows, columns = np.nonzero(read_labels(output, "photos/d"))
    assert (rows.min(), rows.max()) == (6, 30) and abs((columns.max() - columns.min()) - 7.2) <= 1


def test_odd_tasks_and_regions(source, output):
    for name in "abcdefg":
        write_photo(source / f"{name}.jpg")
    good = region("rectangle", "q", x=10, y=10, width=20, height=20)
    odd = [
        region("rectangle", "q", 1, x="1", y=10, width=20, height=20),
        region("polygon", "q", 2, points=[[1, 2]]),
        region("keypoint", "q", 3, x=1, y=1),
        region("brush", "q", 4, format="rle", rle=[1, 2]),
        region("polygon", "", 5, points=[[1, 2], [3, 4], [3, 2]]),
        region("rectangle", "q", 6, x=-10, y=10, width=20, height=20),
        {
            "id": "r7",
            "type": "polygonlabels",
            "value": {"polygonlabels": ["q", "p"], "points": [[1, 2], [3, 4], [3, 2]]},
        },
        5,
        {"id": "r8", "value": {"polygonlabels": ["q"], "points": [[1, 2], [3, 4], [3, 2]]}},
    ]
    two = task(4, "d.jpg", [good])
    two["annotations"] *= 2
    write_json(
        source / "export.json",
        [
            task(1, "a.jpg", odd),
            task(2, "gone.jpg", [good]),
            task(3, "c.jpg", [good], was_cancelled=True),
            two,
            task(5, "e.jpg", [good | {"image_rotation": 90}]),
            task(6, "f.jpg", [good, good | {"original_width": 640}]),
            {"id": 7, "image": "g.jpg"},
            task(8, "text", [good]),
        ],
    )
    result = run_import(source, output)
    said = "\n".join(result.problems)
    assert result.written == 2 and len(result.problems) == 5
    assert "task 2: there is no photo 'gone.jpg'" in said
    assert "task 5: the photo was turned" in said and "task 6: its regions belong to photos of several sizes" in said
    assert 'task 7: has no list "annotations"' in said and "task 8: its data name no photo" in said
    notes = [note.split("export.json, ")[1] for note in result.notes]
    assert notes == [
        "task 3: is not annotated, and is left out",
        "task 4: has 2 annotations; the first is taken",
        "task 1: dropped region 1 ('q'): x, y, width, height must be numbers",
        "task 1: dropped region 2 ('q'): has 1 points; a polygon needs 3",
        "task 1: dropped region 3 ('q'): is of type 'keypoint', which has no area",
        "task 1: dropped region 4 ('q'): its brush mask ends too early",
        "task 1: dropped region 5 (ignored): has no label",
        "task 1: clipped region 6 ('q'): it reaches 4.8 pixels beyond the photo",
        "task 1: dropped region 7 (ignored): has several labels: q, p",
        "task 1: dropped region 8 (ignored): has no value",
        "task 1: dropped region 9 ('q'): is of type '', which has no area",
    ]
