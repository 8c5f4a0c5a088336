"""Predictions as polygons: read by other programs' rules, and imported again, they are the predicted label map."""

import contextlib
import csv
import io
import json
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.importing.class_lists import read_class_list
from fasseg_jax.inference.label_files import LABEL_FORMATS, LabelFiles
from fasseg_jax.inference.outlines import find_outlines
from fasseg_jax.runtime.files import Path, WriteError
from tests.helpers.full_disk import limited_files
from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_photo

CLASSES = ClassTable(("wall", "street sign", "Ätherblau", "car"), np.arange(12, dtype=np.uint8).reshape(4, 3))
UNPAINTED = 255


def fill_as_labelme(outline, size):
    """`shape_to_mask` of labelme."""
    canvas = Image.new("L", size[::-1])
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline.centers.tolist()], fill=1, outline=1)
    return np.asarray(canvas, bool)


def fill_as_coco(outline, size):
    polygon = coco_masks.frPyObjects([outline.corners.ravel().tolist()], *size)
    return coco_masks.decode(polygon)[..., 0].astype(bool)


@pytest.mark.parametrize("fill", [fill_as_labelme, fill_as_coco])
def test_painting_all_outlines_restores_the_label_map(fill):
    """Noise holds all that can happen at a corner: diagonal neighbors, holes that touch the outside, single pixels."""
    rng = np.random.default_rng(0)
    label_maps = [rng.integers(0, rng.integers(1, 4), rng.integers(1, 14, 2)).astype(np.uint8) for _ in range(150)]
    for labels in [*label_maps, ragged_labels(seed=1), np.full((3, 300), 299, np.uint16), np.eye(9, dtype=np.uint8)]:
        painted = np.full(labels.shape, UNPAINTED, labels.dtype)
        areas = []
        for outline in find_outlines(labels):
            inside = fill(outline, labels.shape)
            painted[inside] = outline.class_id
            areas.append(outline.area)
            assert inside.sum() == outline.area
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            assert outline.box == (columns[0], rows[0], len(columns) and np.ptp(columns) + 1, np.ptp(rows) + 1)
        np.testing.assert_array_equal(painted, labels)
        assert areas == sorted(areas, reverse=True)


def test_a_ring_of_one_class_around_another():
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:5] = 1
    labels[2, 2:4] = 0
    outer, ring, inner = find_outlines(labels)
    assert [outline.class_id for outline in (outer, ring, inner)] == [0, 1, 0]
    assert {tuple(point) for point in outer.corners.tolist()} == {(0, 0), (6, 0), (6, 5), (0, 5)}
    assert {tuple(point) for point in ring.corners.tolist()} == {(1, 1), (5, 1), (5, 4), (1, 4)}
    assert {tuple(point) for point in ring.centers.tolist()} == {(1, 1), (4, 1), (4, 3), (1, 3)}
    assert inner.box == (2, 2, 2, 1) and inner.area == 2


def write_all(kind, folder, output):
    """Three photos with their label maps; the uncertainty of photo n is n / 10, but of the first 0.15."""
    files = LabelFiles(kind, output, CLASSES)
    names = ["a.jpg", "street/a.png", "street/turned.jpg"]
    label_maps = []
    for number, name in enumerate(names):
        write_photo(folder / name, orientation=6 if "turned" in name else 1)
        with Image.open(folder / name) as image:
            turned = image.getexif().get(0x0112, 1) == 6
        labels = ragged_labels(seed=number)
        label_maps.append(labels.T.copy() if turned else labels)  # as predict.py shows the photo
        files.add(folder / name, Path(name).with_suffix(""), name, label_maps[-1], number / 10 or 0.15)
    files.finish()
    return names, label_maps


@pytest.mark.parametrize("kind", LABEL_FORMATS)
def test_importing_gives_the_predicted_label_maps_back(tmp_path, kind):
    photos, output, data = (tmp_path / name for name in ("photos", "results", "data"))
    names, label_maps = write_all(kind, photos, output)
    classes, colors = read_class_list(output / "classes.csv")
    options = {"classes": classes, "colors": colors, "unlabeled": "ignore", "photos": photos}
    result = run_import(output / kind, data, **(options if kind == "coco" else options | {"photos": None}))
    assert result.written == 3 and not result.problems
    assert all("overlap" in note for note in result.notes)
    assert class_names(data) == list(CLASSES.names)
    np.testing.assert_array_equal(result.classes.palette, CLASSES.palette)
    for name, labels in zip(names, label_maps, strict=True):
        np.testing.assert_array_equal(read_labels(data, Path(name).with_suffix("").as_posix()), labels)


@pytest.mark.parametrize("kind", LABEL_FORMATS)
def test_the_least_certain_photos_come_first(tmp_path, kind):
    write_all(kind, tmp_path / "photos", tmp_path / "results")
    with (tmp_path / "results/to_correct.csv").open(newline="", encoding="utf-8") as lines:
        rows = [(row["photo"], float(row["uncertainty"])) for row in csv.DictReader(lines)]
    expected = [("street/turned.jpg", 0.2), ("a.jpg", 0.15), ("street/a.png", 0.1)]
    assert rows == [(str(tmp_path / "photos" / name), uncertainty) for name, uncertainty in expected]
    if kind == "coco":
        images = json.loads((tmp_path / "results/coco/annotations.json").read_text("utf-8"))["images"]
        assert [(image["file_name"], image["uncertainty"]) for image in images] == expected


def test_pycocotools_reads_the_file(tmp_path):
    names, label_maps = write_all("coco", tmp_path / "photos", tmp_path / "results")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "results/coco/annotations.json"))
    assert {entry["id"]: entry["name"] for entry in coco.loadCats(coco.getCatIds())} == dict(
        enumerate(CLASSES.names, 1)
    )
    for image in coco.loadImgs(coco.getImgIds()):
        labels = label_maps[names.index(image["file_name"])]
        painted = np.full(labels.shape, UNPAINTED, np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
            inside = coco.annToMask(annotation).astype(bool)
            assert inside.sum() == annotation["area"]
            painted[inside] = annotation["category_id"] - 1
            np.testing.assert_array_equal(coco_masks.toBbox(coco.annToRLE(annotation)), annotation["bbox"])
        np.testing.assert_array_equal(painted, labels)


def test_labelme_files_name_the_photo_beside_them(tmp_path):
    names, label_maps = write_all("labelme", tmp_path / "photos", tmp_path / "results")
    for name, labels in zip(names, label_maps, strict=True):
        file = (tmp_path / "results/labelme" / name).with_suffix(".json")
        content = json.loads(file.read_text("utf-8"))
        assert (file.parent / content["imagePath"]).read_bytes() == (tmp_path / "photos" / name).read_bytes()
        assert (content["imageHeight"], content["imageWidth"]) == labels.shape
        assert {shape["shape_type"] for shape in content["shapes"]} == {"polygon"}
        assert {shape["label"] for shape in content["shapes"]} == {
            CLASSES.names[class_id] for class_id in set(labels.flat)
        }


def test_names_of_files_in_another_encoding(tmp_path):
    """The bytes of the name come back from JSON; the list shows them as escapes."""
    name = os.fsdecode("Straße.png".encode("latin-1"))
    write_photo(tmp_path / name)
    for kind in LABEL_FORMATS:
        files = LabelFiles(kind, tmp_path / "results", CLASSES)
        files.add(tmp_path / name, Path(name).with_suffix(""), name, ragged_labels(0), 0.5)
        files.finish()
    (labelme,) = (tmp_path / "results/labelme").glob("*.json")
    assert json.loads(labelme.read_text("utf-8"))["imagePath"] == name
    coco = json.loads((tmp_path / "results/coco/annotations.json").read_text("utf-8"))
    assert coco["images"][0]["file_name"] == name
    assert r"Stra\udcdfe.png,0.5" in (tmp_path / "results/to_correct.csv").read_text("utf-8")


@pytest.mark.parametrize("kind", LABEL_FORMATS)
def test_a_full_disk_is_named(tmp_path, kind):
    write_photo(tmp_path / "a.jpg")
    files = LabelFiles(kind, tmp_path / "results", CLASSES)
    with limited_files(1000), pytest.raises(WriteError, match=f"cannot write {tmp_path}/results/{kind}"):
        files.add(tmp_path / "a.jpg", Path("a"), "a.jpg", ragged_labels(0), 0.5)
        files.finish()
