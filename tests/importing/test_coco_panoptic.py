"""COCO panoptic: exact labels, and what is said about odd files."""

import numpy as np
from PIL import Image

from tests.helpers.import_cases import class_names, ragged_labels, read_labels, run_import, write_json, write_photo

CATEGORIES = [{"id": 9, "name": "sky", "isthing": 0}, {"id": 2, "name": "car", "isthing": 1}]
CLASS_OF = {70000: 9, 300: 2, 5: 2}  # segment -> category
INDEX_OF = {2: 0, 9: 1}


def write_panoptic(source, photos, split="train2017"):
    """Photos whose regions are segments of no id and of three ids."""
    images, annotations = [], []
    for number, name in enumerate(photos):
        write_photo(source / split / f"{name}.jpg")
        segments = np.array([0, *CLASS_OF])[ragged_labels(ord(name[0]))]
        rgb = np.stack([segments % 256, segments // 256 % 256, segments // 256**2], axis=-1).astype(np.uint8)
        (source / f"annotations/panoptic_{split}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(source / f"annotations/panoptic_{split}/{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": 36, "width": 48})
        info = [{"id": segment, "category_id": category} for segment, category in CLASS_OF.items()]
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": info})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    write_json(source / f"annotations/panoptic_{split}.json", content)
    return content


def test_segments_become_their_classes(source, output):
    write_panoptic(source, ["a"])
    write_panoptic(source, ["b"], "val2017")
    result = run_import(source, output)
    assert not result.problems and not result.notes and class_names(output) == ["car", "sky"]
    assert (output / "images/validation/val2017/b.jpg").exists()
    for split, name in (("train", "a"), ("val", "b")):
        expected = np.array([255, *(INDEX_OF[category] for category in CLASS_OF.values())])[ragged_labels(ord(name))]
        np.testing.assert_array_equal(read_labels(output, f"{split}2017/{name}"), expected)


def test_photos_in_png_beside_masks_of_the_same_name(source, output):
    content = write_panoptic(source, ["a"])
    Image.open(source / "train2017/a.jpg").save(source / "train2017/a.png")
    (source / "train2017/a.jpg").unlink()
    content["images"][0]["file_name"] = "a.png"
    write_json(source / "annotations/panoptic_train2017.json", content)
    result = run_import(source, output, photos=source / "train2017")
    assert result.written == 1, result.problems
    photo = next(output.glob("images/training/**/a.png"))
    assert photo.read_bytes() == (source / "train2017/a.png").read_bytes()


def test_odd_annotations(source, output):
    content = write_panoptic(source, ["a", "b", "c", "d", "e", "f"])
    annotations = content["annotations"]
    annotations[1]["segments_info"].pop()
    annotations[2]["segments_info"][0]["category_id"] = 77
    annotations[3]["file_name"] = "gone.png"
    annotations[4]["image_id"] = 99
    annotations[0]["segments_info"].append({"id": 6, "category_id": 2})
    (source / "train2017/f.jpg").unlink()
    write_json(source / "annotations/panoptic_train2017.json", content)
    result = run_import(source, output)
    said = "\n".join(result.problems)
    assert result.written == 1 and len(result.problems) == 5
    assert "b.png: holds 1 segments that the JSON file does not list: 5 (" in said
    assert "annotation 3, segment 1: its category '77' is not in the file" in said
    assert "annotation 4: its PNG is not in" in said
    assert "annotation 5: its image_id is that of no image" in said
    assert "annotation 6: there is no photo 'f.jpg'" in said
    assert "dropped segment 6: covers no pixel" in "\n".join(result.notes)
    assert "the photo 'e.jpg' has no annotation" in "\n".join(result.notes)
