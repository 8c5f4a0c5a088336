"""Folders as people have them: which photo belongs to which label map, and to which split."""

import hashlib

import numpy as np
import pytest

from fasseg_jax.config import ConfigError, check_config, load_config
from fasseg_jax.data import DataError, describe_data, open_source
from fasseg_jax.data.folder_layout import AmbiguousLayoutError, LayoutError, find_layout
from fasseg_jax.data.folder_splits import SplitRules, split_photos
from tests.helpers.data_cases import write_image

TRAIN, VAL = [f"a{index}x" for index in range(12)], [f"b{index}x" for index in range(3)]


def write_pairs(root, photo, label, names=TRAIN, value=None):
    """Photos and label maps that hold the position of the name, so that a wrong partner is noticed."""
    for index, name in enumerate(names):
        if photo:
            write_image(root / photo.format(name), np.full((6, 8, 3), 10 * index, np.uint8))
        if label:
            write_image(root / label.format(name), np.full((6, 8), index if value is None else value, np.uint8))


def write_splits(root, photo, label):
    for split, names in (("train", TRAIN), ("val", VAL)):
        write_pairs(root, photo.replace("SPLIT", split), label.replace("SPLIT", split), names)


def names_of(root):
    """Split -> names, after a look at the files themselves: that each photo has its own label map."""
    config = load_config(f"configs/folder.py:{root}")
    found = {}
    for split in ("training", "validation"):
        source = open_source(config, split)
        found[split] = []
        for index in range(len(source)):
            sample = source[index]
            stem = sample.name.rpartition("/")[2].partition(".")[0]
            name = next(name for name in (*TRAIN, *VAL) if stem.startswith(name))
            position = (TRAIN if name in TRAIN else VAL).index(name)
            assert (sample.labels == position).all()
            assert abs(int(sample.image.mean()) - 10 * position) <= 2  # JPEG
            found[split].append(name)
    return found


@pytest.mark.parametrize(
    ("photo", "label"),
    [
        ("images/SPLIT/{}.jpg", "annotations/SPLIT/{}.png"),
        ("images/SPLIT/{}.jpg", "labels/SPLIT/{}.png"),
        ("SPLIT/images/{}.jpg", "SPLIT/masks/{}.png"),
        ("SPLIT/images/{}.jpg", "SPLIT/labels/{}_mask.png"),
        ("SPLIT/{}.png", "SPLITannot/{}.png"),
        ("SPLIT/{}.jpg", "SPLIT_labels/{}_L.png"),
        ("SPLIT/{}.jpg", "SPLIT/{}_mask.png"),
        ("images/SPLIT2017/{}.jpg", "annotations/SPLIT2017/{}.png"),
        ("images/SPLIT/{}.jpg", "masks/{}.png"),
        ("Images/{}.jpg", "Masks/SPLIT/{}_gtFine_labelIds.png"),
        ("my data/SPLIT/images/{}.jpg", "my data/SPLIT/label_maps/{}.png"),
    ],
)
def test_folders_that_name_splits(tmp_path, photo, label):
    write_splits(tmp_path, photo, label)
    assert names_of(tmp_path) == {"training": sorted(TRAIN), "validation": VAL}


@pytest.mark.parametrize("word", ["val", "valid", "validation", "Val"])
def test_names_of_the_validation_folder(tmp_path, word):
    write_pairs(tmp_path, "images/training/{}.jpg", "annotations/training/{}.png")
    write_pairs(tmp_path, f"images/{word}/{{}}.jpg", f"annotations/{word}/{{}}.png", VAL)
    write_pairs(tmp_path, "images/test/{}.jpg", "", VAL)  # left out, whatever they lack
    assert names_of(tmp_path) == {"training": sorted(TRAIN), "validation": VAL}


@pytest.mark.parametrize(
    ("photo", "label", "name"),
    [
        ("images/{}.jpg", "masks/{}.png", "{}"),
        ("{}.jpg", "{}_mask.png", "{}"),
        ("{}_sat.jpg", "{}_mask.png", "{}_sat"),
        ("photos/deep/{}.jpg", "photos/deep/{}_labelIds.png", "deep/{}"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "{}"),
        ("scene/images/{}.jpg", "scene/ground_truth/{}.png", "scene/{}"),
    ],
)
def test_folders_without_splits(tmp_path, photo, label, name):
    write_pairs(tmp_path, photo, label, value=None)
    found = names_of(tmp_path)

    def plain_hash(text):
        return hashlib.sha256(name.format(text).encode()).digest()

    assert found["validation"] == sorted(sorted(TRAIN, key=plain_hash)[: len(found["validation"])])
    assert sorted(found["training"] + found["validation"]) == sorted(TRAIN) and 2 <= len(found["validation"]) <= 4
    (line, *_) = describe_data(load_config(f"configs/folder.py:{tmp_path}").data)
    assert f"{12 - len(found['validation'])} training and {len(found['validation'])} validation photos in" in line
    assert "divided by a hash of the names (config.data.validation_share = 0.2)" in line


def test_training_without_validation_is_divided(tmp_path):
    write_pairs(tmp_path, "images/train/{}.jpg", "labels/train/{}.png")
    found = names_of(tmp_path)
    assert found["validation"] and sorted(found["training"] + found["validation"]) == sorted(TRAIN)
    (tmp_path / "images/val").mkdir()
    with pytest.raises(LayoutError, match="images/val holds no pictures; add some, or remove it"):
        names_of(tmp_path)


def test_lists(tmp_path):
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(TRAIN[:6]) + "\n\n")
    (lists / "val.txt").write_text(f"images/{TRAIN[7]}.jpg masks/{TRAIN[7]}.png\n/home/me/images/{TRAIN[8]}.jpg\n")
    (lists / "trainval.txt").write_text("\n".join(TRAIN))
    assert names_of(tmp_path) == {"training": sorted(TRAIN[:6]), "validation": TRAIN[7:9]}
    (line, *_) = describe_data(load_config(f"configs/folder.py:{tmp_path}").data)
    assert "4 labeled photos are in no list and left out" in line
    (lists / "train.txt").unlink()
    assert names_of(tmp_path)["training"] == sorted({*TRAIN} - {*TRAIN[7:9]})
    (lists / "test.txt").write_text(f"{TRAIN[0]}\nunlabeled\n")
    assert names_of(tmp_path)["training"] == sorted({*TRAIN} - {*TRAIN[7:9], TRAIN[0]})
    (lists / "val.txt").write_text(f"{TRAIN[1]}\nabsent\n")
    with pytest.raises(DataError, match=r"val.txt, line 2: names 'absent', but no labeled photo is called so"):
        open_source(load_config(f"configs/folder.py:{tmp_path}"), "validation")
    (lists / "train.txt").write_text(f"{TRAIN[1]}\n")
    splits = split_photos(find_layout(tmp_path), SplitRules())
    assert any("which is in the other list too" in line for line in splits.problems["validation"])
    (lists / "train.txt").write_text("\n")
    with pytest.raises(LayoutError, match=r"train.txt and .*val.txt leave no training photos"):
        split_photos(find_layout(tmp_path), SplitRules())
    (tmp_path / "val.txt").write_text(TRAIN[1])
    with pytest.raises(AmbiguousLayoutError, match=r"two lists .*/val.txt and .*/val.txt"):
        names_of(tmp_path)


def problems_of(root):
    splits = split_photos(find_layout(root), SplitRules())
    return [line.replace(f"{root}/", "") for lines in splits.problems.values() for line in lines]


def test_two_label_maps_for_a_photo(tmp_path):
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    write_image(tmp_path / "masks/a1x_mask.png", np.zeros((6, 8), np.uint8))
    write_image(tmp_path / "masks/a2x.tif", np.zeros((6, 8), np.uint8))
    assert sorted(problems_of(tmp_path)) == [
        "images/a1x.jpg has two label maps, masks/a1x.png and masks/a1x_mask.png; remove one",
        "images/a2x.jpg has two label maps, masks/a2x.png and masks/a2x.tif; remove one",
    ]


def test_pictures_beside_label_maps_are_left_out_and_said(tmp_path):
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}_labelIds.png")
    write_pairs(tmp_path, "", "masks/{}_color.png", TRAIN[:5])
    write_pairs(tmp_path, "results/{}.jpg", "", TRAIN[:4])
    assert problems_of(tmp_path) == []
    (line, *_) = describe_data(load_config(f"configs/folder.py:{tmp_path}").data)
    assert "label maps in masks (NAME_labelIds.png)" in line
    assert "5 other pictures in masks are left out" in line and "4 other pictures in results are left out" in line


def test_endings_that_belong_to_the_name(tmp_path):
    """The left and right photos of a stereo camera: a name that fits as it is comes before one without its ending."""
    for index, side in enumerate("lr"):
        write_pairs(tmp_path, f"images/{{}}_{side}.jpg", f"masks/{{}}_{side}.png", value=index)
    config = load_config(f"configs/folder.py:{tmp_path}")
    for split in ("training", "validation"):
        source = open_source(config, split)
        for index in range(len(source)):
            assert (source[index].labels == source[index].name.endswith("_r.jpg")).all()


def test_two_folders_may_be_meant(tmp_path):
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    write_pairs(tmp_path, "", "labels/{}.png", TRAIN[:3])
    with pytest.raises(LayoutError, match=r"two folders may hold the label maps, labels \(3 .*masks \(12 .* elsewhere"):
        find_layout(tmp_path)
    (tmp_path / "labels").rename(tmp_path / ".labels")
    write_pairs(tmp_path, "photos/{}.jpg", "", TRAIN[:3])
    with pytest.raises(AmbiguousLayoutError, match=r"hold the photos, images \(12 files\) and photos \(3 files\)"):
        find_layout(tmp_path)


@pytest.mark.parametrize(
    ("photo", "label", "message"),
    [
        ("", "", "holds no photos with label maps"),
        ("x/{}.jpg", "", "holds 12 photos, such as .*x/a0x.jpg, but no label maps"),
        ("", "masks/{}.png", "holds 12 label maps, such as .*masks/a0x.png, but no photos"),
        (
            "images/{}.jpg",
            "masks/of {}.png",
            "no label map has the name of a photo; for example .*a0x.jpg and .*of a0",
        ),
    ],
)
def test_nothing_fits(tmp_path, photo, label, message):
    write_pairs(tmp_path, photo, label)
    with pytest.raises(LayoutError, match=message):
        split_photos(find_layout(tmp_path), SplitRules())
    with pytest.raises(LayoutError, match="there is no folder"):
        find_layout(tmp_path / "absent")


def test_validation_photos_are_enough_to_evaluate(tmp_path):
    write_pairs(tmp_path, "images/val/{}.jpg", "masks/val/{}.png")
    config = load_config(f"configs/folder.py:{tmp_path}")
    assert len(open_source(config, "validation")) == 12
    with pytest.raises(LayoutError, match="holds no training photos with label maps"):
        open_source(config, "training")


def test_photos_beside_the_folders_of_splits(tmp_path):
    write_splits(tmp_path, "images/SPLIT/{}.jpg", "masks/SPLIT/{}.png")
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png", ["c"])
    assert problems_of(tmp_path) == ["images/c.jpg lies in no folder of training or validation photos"]


def test_the_split_of_a_folder_follows_the_configuration(tmp_path):
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png")
    config = load_config(f"configs/folder.py:{tmp_path}")
    before = {split: open_source(config, split).fingerprint for split in ("training", "validation")}
    assert before["training"] != before["validation"]
    tmp_path.rename(moved := tmp_path.with_name("moved"))
    config.data.root = str(moved)
    assert {split: open_source(config, split).fingerprint for split in before} == before
    config.data.validation_share = 0.5
    assert len(open_source(config, "validation")) > 3
    assert open_source(config, "validation").fingerprint != before["validation"]
    config.data.validation_share = 0
    with pytest.raises(LayoutError, match="no validation photos, and config.data.validation_share is 0"):
        open_source(config, "validation")
    config.data.update(validation_share=0.2, group="(")
    with pytest.raises(ConfigError, match="config.data.group = .*auto, none or a regular expression"):
        check_config(config)
    config.data.group = "a"
    with pytest.raises(LayoutError, match="puts all photos into one group"):
        open_source(config, "training")


def test_classes_of_validation_photos(tmp_path):
    """A class of two photos is on both sides; ignored pixels are no class."""
    write_pairs(tmp_path, "images/{}.jpg", "masks/{}.png", value=0)
    for name in TRAIN:
        before = np.full((6, 8), 255, np.uint8)
        before[0] = 0
        write_image(tmp_path / f"masks/{name}.png", before)
    config = load_config(f"configs/folder.py:{tmp_path}")
    config.model.num_classes = 2
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    plain = [source.name for source in map(open_source(config, "validation").__getitem__, range(2))]
    rare = [name for name in TRAIN if not any(name in path for path in plain)][:2]
    for name in rare:
        values = np.zeros((6, 8), np.uint8)
        values[2] = 1
        write_image(tmp_path / f"masks/{name}.png", values)
    for split in ("training", "validation"):
        source = open_source(config, split)
        assert any((source[index].labels == 1).any() for index in range(len(source)))
    assert "1 photo moved" in describe_data(config.data)[0]
