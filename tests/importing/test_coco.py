"""COCO files: labels against pycocotools, and what is said about odd ones."""

import numpy as np
import pycocotools.mask as mask_library
import pytest

from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_json, write_photo

CATEGORIES = [
    {"id": 7, "name": "car"},
    {"id": 3, "name": "road"},
    {"id": 90, "name": "sky"},
    {"id": 91, "name": "tree"},
]
IN_ORDER = [3, 7, 90, 91]


def write_coco(source, annotations, name="labels.json", photos=("a.jpg",), **image):
    images = []
    for index, photo in enumerate(photos):
        write_photo(source / "photos" / photo)
        images.append({"id": index, "file_name": photo, "height": 36, "width": 48} | image)
    return write_json(source / name, {"images": images, "categories": CATEGORIES, "annotations": annotations})


def rle(mask, compressed):
    encoded = mask_library.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0)).tolist()
    return {"size": encoded["size"], "counts": np.diff([0, *edges, flat.size]).tolist()}


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_come_back_exactly(source, output, compressed):
    labels = ragged_labels(1)
    write_coco(
        source,
        [
            {
                "id": k,
                "image_id": 0,
                "category_id": IN_ORDER[k],
                "iscrowd": 1,
                "segmentation": rle(labels == k, compressed),
            }
            for k in range(4)
        ],
    )
    assert not run_import(source, output, unlabeled="ignore").problems
    np.testing.assert_array_equal(read_labels(output, "photos/a"), labels)
    assert class_names(output) == ["road", "car", "sky", "tree"]


def test_polygons_are_those_of_pycocotools(source, output):
    rng = np.random.default_rng(3)
    expected = np.full((36, 48), 255, np.uint8)
    annotations = []
    for number in range(30):
        rings = [
            (rng.uniform(5, 30, 2) + rng.uniform(-8, 8, (points, 2))).ravel().tolist()
            for points in rng.integers(3, 9, 2)
        ]
        annotations.append({"image_id": 0.0, "category_id": IN_ORDER[number % 4], "segmentation": rings})
        encoded = mask_library.merge(mask_library.frPyObjects(rings, 36, 48))
        expected[mask_library.decode(encoded) > 0] = number % 4
    write_coco(source, annotations)
    run_import(source, output, unlabeled="ignore")
    np.testing.assert_array_equal(read_labels(output, "photos/a"), expected)


def test_splits_are_read_from_the_names_of_files(source, output):
    write_coco(source, [], "instances_train2017.json", ["a.jpg"])
    write_coco(source, [], "instances_val2017.json", ["b.jpg"])
    run_import(source, output)
    assert [
        (output / f"images/{split}/photos/{name}.jpg").exists()
        for split, name in (("training", "a"), ("validation", "b"))
    ]
    assert (read_labels(output, "photos/b") == 0).all()  # an image without annotations is all background


def test_odd_annotations_are_reported(source, output):
    good = rle(ragged_labels(0) == 1, True)
    write_coco(
        source,
        [
            {"image_id": 0, "category_id": 5, "segmentation": good},
            {"image_id": 0, "category_id": 3, "segmentation": [[1, 2, 3, 4]]},
            {"image_id": 0, "category_id": 3, "segmentation": [[1, 2, 3, 4, 5]]},
            {"image_id": 0, "category_id": 3, "segmentation": [], "bbox": [1, 2, 3, 4]},
            {"image_id": 0, "category_id": 3, "segmentation": {"size": [36, 48], "counts": good["counts"][:-3]}},
            {"image_id": 0, "category_id": 3, "segmentation": {"size": [36, 48], "counts": [36 * 48 + 1]}},
            {"image_id": 0, "category_id": 3, "segmentation": {"size": [36, 48], "counts": "\x7f!"}},
            {"image_id": 0, "category_id": 3, "segmentation": {"size": [48, 36], "counts": [0, 48 * 36]}},
            {"image_id": 0, "category_id": 3, "segmentation": [[0, 0, 60, 0, 60, 9]]},
            {"image_id": 99, "category_id": 3, "segmentation": good},
            "text",
        ],
    )
    result = run_import(source, output)
    notes = [note.split("a.jpg: ")[1] for note in result.notes]
    assert notes[0] == "dropped annotation 1 (ignored): its category '5' is not in the file"
    assert notes[1] == "dropped annotation 2 ('road'): has 2 points; a polygon needs 3"
    assert notes[2] == "dropped annotation 3 ('road'): a polygon is no list of x, y, x, y, ..."
    assert notes[3] == "dropped annotation 4 ('road'): has no segmentation; it has a box only"
    assert "the counts of its RLE" in notes[4] and "1729 pixels" in notes[5] and "none of COCO's" in notes[6]
    assert notes[7] == "dropped annotation 8 ('road'): its mask is of [48, 36] (height, width), the photo of [36, 48]"
    assert notes[8] == "clipped annotation 9 ('road'): it reaches 12 pixels beyond the photo"
    assert len(notes) == 9
    assert result.problems == (
        f"{source}/labels.json, annotation 10: belongs to no image of the file (image_id '99')",
        f"{source}/labels.json, annotation 11: belongs to no image of the file (image_id '')",
    )


def test_odd_files_are_named(source, output):
    write_coco(source, [], photos=["a.jpg", "b.jpg", "c.jpg"])
    (source / "photos/b.jpg").unlink()
    write_photo(source / "photos/c.jpg", 20, 20)
    write_json(source / "twice.json", {"images": [], "annotations": [], "categories": [CATEGORIES[0], CATEGORIES[0]]})
    write_json(source / "nameless.json", {"images": [], "annotations": [], "categories": [{"id": 1}]})
    write_json(source / "empty.json", {})
    result = run_import(source, output)
    said = "\n".join(result.problems)
    assert result.written == 1 and len(result.problems) == 5
    assert "labels.json, image 2: there is no photo 'b.jpg'" in said
    assert "labels.json, c.jpg: its labels are 48x36 pixels, the photo" in said
    assert "twice.json: two categories have the same id" in said
    assert "nameless.json, category 1: the field 'name' must be of type str" in said
    assert "empty.json: the field 'categories' must be of type list" in said
