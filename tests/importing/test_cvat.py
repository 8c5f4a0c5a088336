"""CVAT XML: labels against pycocotools and numpy, safety, and what is said about odd ones."""

import itertools

import numpy as np
import pycocotools.mask as mask_library
import pytest

from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_photo

META = (
    "<meta><job><labels><label><name>road</name><color>#804080</color></label>"
    "<label><name>car</name><color>#0000ff</color></label></labels></job></meta>"
)


def write_cvat(source, images, meta=META, **attributes):
    body = ""
    for number, (name, elements) in enumerate(images.items()):
        write_photo(source / "images" / name)
        body += f'<image id="{number}" name="{name}" width="48" height="36">{elements}</image>'
    (source / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{body}</annotations>'
    )


def mask_element(label, mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    runs = [(value, len(list(group))) for value, group in itertools.groupby(window.ravel().tolist())]
    counts = [0] * bool(runs[0][0]) + [count for _, count in runs]
    box = f'left="{columns[0]}" top="{rows[0]}" width="{window.shape[1]}" height="{window.shape[0]}"'
    return f'<mask label="{label}" rle="{", ".join(map(str, counts))}" {box} z_order="0"/>'


def test_masks_come_back_exactly(source, output):
    labels = ragged_labels(4)
    write_cvat(source, {"a.jpg": "".join(mask_element(f"class {k}", labels == k) for k in range(4))}, meta="")
    assert not run_import(source, output, unlabeled="ignore").problems
    np.testing.assert_array_equal(read_labels(output, "images/a"), labels)


def test_polygons_boxes_and_depth(source, output):
    points = [(5.2, 3.1), (30.7, 6.9), (22.0, 31.5), (3.3, 20.2)]
    polygon = f'<polygon label="car" points="{";".join(f"{x},{y}" for x, y in points)}" z_order="1"/>'
    box = '<box label="road" xtl="0.0" ytl="10.0" xbr="48.0" ybr="20.0" z_order="0"/>'
    write_cvat(source, {"a.jpg": polygon + box, "b.jpg": box.replace("/>", ' rotation="90"/>')})
    result = run_import(source, output)
    assert class_names(output) == ["background", "road", "car"]
    assert result.classes.palette.tolist() == [[0, 0, 0], [128, 64, 128], [0, 0, 255]]
    expected = np.zeros((36, 48), np.uint8)
    expected[10:20] = 1
    encoded = mask_library.frPyObjects([np.ravel(points).tolist()], 36, 48)
    expected[mask_library.decode(encoded)[..., 0] > 0] = 2
    np.testing.assert_array_equal(read_labels(output, "images/a"), expected)
    turned = np.zeros((36, 48), np.uint8)
    turned[:, 19:29] = 1  # 48 wide and 10 high about (24, 15), turned by a quarter
    np.testing.assert_array_equal(read_labels(output, "images/b"), turned)


def test_ellipses(source, output):
    """The area and the axes are those of the ellipse, turned clockwise as seen on the photo."""
    write_cvat(source, {"a.jpg": '<ellipse label="car" cx="24" cy="18" rx="15" ry="5" rotation="30"/>'})
    run_import(source, output)
    inside = read_labels(output, "images/a") == 2
    assert abs(np.count_nonzero(inside) - np.pi * 15 * 5) < 8
    rows, columns = np.nonzero(inside)
    covariance = np.cov(columns, rows)
    axis = np.linalg.eigh(covariance)[1][:, 1]
    assert abs(np.degrees(np.arctan2(axis[1], axis[0])) % 180 - 30) < 2


def test_odd_elements(source, output):
    elements = (
        '<polyline label="car" points="1,1;2,2"/>'
        '<polygon label="car" points="1,1;2"/>'
        '<polygon label="car" points="1,1;2,2"/>'
        '<polygon points="1,1;2,2;3,1"/>'
        '<box label="car" xtl="a" ytl="0" xbr="1" ybr="2"/>'
        '<mask label="car" rle="1, 2" left="0" top="0" width="2" height="2"/>'
        '<mask label="car" rle="-1" left="0" top="0" width="2" height="2"/>'
        '<mask label="car" rle="1, 3" left="47" top="0" width="2" height="2"/>'
        '<tag label="car"/>'
        '<polygon label="truck" points="nan,1;2,2;3,1"/>'
    )
    write_cvat(source, {"a.jpg": elements})
    result = run_import(source, output)
    assert [note.split("'a.jpg': ")[1] for note in result.notes] == [
        "dropped polyline 1 ('car'): is of type 'polyline', which has no area",
        "dropped polygon 2 ('car'): its points are no pairs of numbers: '1,1;2'",
        "dropped polygon 3 ('car'): has 2 points; a polygon needs 3",
        "dropped polygon 4 (ignored): has no label",
        "dropped box 5 ('car'): xtl, ytl, xbr, ybr must be numbers",
        "dropped mask 6 ('car'): its run lengths are 3 pixels, its box is 2x2",
        "dropped mask 7 ('car'): its run lengths are no whole numbers from 0",
        "clipped mask 8 ('car'): it reaches 1 pixels beyond the photo",
        "dropped polygon 10 ('truck'): has coordinates that are no numbers",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotations>&x;</annotations>', "holds a document type or entities"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', "holds a document type or entities"),
        ("<annotations>", "is no XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotations/>', "is no XML"),
        ("<other><annotations/></other>", "is no file of CVAT"),
        ("<annotations><track/><track/></annotations>", "holds 2 tracks of a video"),
        ('<annotations><image name="gone.jpg"/></annotations>', "image 'gone.jpg': there is no photo"),
        ("<annotations><image/></annotations>", "image '': names no photo"),
    ],
)
def test_odd_files(source, output, content, message):
    write_cvat(source, {"a.jpg": ""})
    (source / "b.xml").write_text(content)
    result = run_import(source, output)
    assert result.written == 1 and len(result.problems) == 1
    assert f"{source}/b.xml" in result.problems[0] and message in result.problems[0]
