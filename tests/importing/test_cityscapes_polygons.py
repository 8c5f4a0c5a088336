"""Cityscapes polygons: the 19 training ids, own classes, and what is said about odd files."""

import numpy as np

from fasseg_jax.data.classes import load_classes
from tests.helpers.import_cases import class_names, read_labels, run_import, write_json, write_photo


def box(label, left, top, right, bottom, **fields):
    return {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]} | fields


def write_polygons(source, name, objects, split="train", **size):
    write_photo(source / f"leftImg8bit/{split}/aachen/{name}_leftImg8bit.png")
    content = {"imgHeight": 36, "imgWidth": 48, "objects": objects} | size
    return write_json(source / f"gtFine/{split}/aachen/{name}_gtFine_polygons.json", content)


def test_training_ids(source, output):
    objects = [
        box("road", 0, 0, 47, 20),
        box("cargroup", 5, 5, 9, 9),
        box("static", 12, 12, 14, 14),
        box("license plate", 6, 6, 7, 7),
        box("person", 30, 0, 40, 9, deleted=1),
        box("bicycle", 40, 30, 60, 40),
    ]
    write_polygons(source, "a_0_0", objects)
    write_polygons(source, "b_0_0", objects[:1], "val")
    result = run_import(source, output)
    assert not result.problems
    assert class_names(output) == list(load_classes("cityscapes").names)
    expected = np.full((36, 48), 255, np.uint8)
    expected[:21] = 0  # road
    expected[5:10, 5:10] = 13  # car
    expected[12:15, 12:15] = 255
    expected[30:, 40:] = 18  # bicycle
    np.testing.assert_array_equal(read_labels(output, "leftImg8bit/aachen/a_0_0_leftImg8bit"), expected)
    assert (output / "annotations/validation/leftImg8bit/aachen/b_0_0_leftImg8bit.png").exists()
    said = "\n".join(result.notes)
    assert "dropped object 4 ('license plate'): Cityscapes' own masks do not draw it" in said
    assert "clipped object 6 ('bicycle'): it reaches 12 pixels beyond the photo" in said
    assert "its 19 classes are trained" in said


def test_own_classes(source, output):
    write_polygons(source, "a", [box("tram stop", 0, 0, 9, 9), box("cargroup", 20, 20, 29, 29), {"label": "x"}, {}])
    result = run_import(source, output)
    assert class_names(output) == ["cargroup", "tram stop", "x"]
    labels = read_labels(output, "leftImg8bit/aachen/a_leftImg8bit")
    assert (labels[5, 5], labels[25, 25], labels[35, 0]) == (1, 0, 255)
    assert "object 3 ('x'): its points are no pairs of numbers: None" in "\n".join(result.notes)
    assert "object 4 (ignored): has no label" in "\n".join(result.notes)


def test_odd_files(source, output):
    write_polygons(source, "a", [box("road", 0, 0, 9, 9)])
    write_polygons(source, "b", [])
    (source / "leftImg8bit/train/aachen/b_leftImg8bit.png").unlink()
    write_polygons(source, "c", [], imgWidth=2048)
    write_polygons(source, "d", {})
    write_polygons(source, "e", [])
    write_photo(source / "copy/e_leftImg8bit.png")
    result = run_import(source, output)
    said = "\n".join(result.problems)
    assert result.written == 1 and len(result.problems) == 4
    assert "b_gtFine_polygons.json: there is no photo b_leftImg8bit.png" in said
    assert "c_gtFine_polygons.json: its labels are 2048x36 pixels" in said
    assert "d_gtFine_polygons.json is no Cityscapes file: the field 'objects' must be of type list" in said
    assert "e_gtFine_polygons.json: several photos are for it" in said
