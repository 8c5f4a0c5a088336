"""Data sets that tensorflow-datasets prepared by their names give what their makers put in."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, open_source
from fasseg_jax.data.classes import load_classes, write_classes
from tests.data.test_data_in_buckets import upload
from tests.helpers.data_cases import small_crops
from tests.helpers.tfds_builders import CLASSES, build, build_standard, edit, example


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tfds")
    assert build(root) == root / "pets/small/1.2.0"
    build(root, config="with_depth")
    shutil.copytree(root / "pets/small/1.2.0", root / "pets/small/1.10.0")
    edit(root / "pets/small/1.10.0/dataset_info.json", '"version": "1.2.0"', '"version": "1.10.0"')
    write_classes(root / "classes.csv", CLASSES)
    return root


def config_of(root, **fields: str) -> ConfigDict:
    """Three classes, whose label ids begin at 1."""
    config = small_crops(load_config("configs/ade20k.py:r50"))
    config.data.update(source="tfds", root=str(root), dataset="")
    config.data.tfds.update({"validation": "test", **fields})
    config.model.num_classes = 3
    return config


def assert_as_made(source, split: str, indices):
    """Photos are as they were made, and ids are one less than in the label maps; 0 is ignored."""
    assert len(source) == len(indices) and source.problems == ()
    assert source.classes.names == CLASSES.names and source.file_ids.tolist() == [1, 2, 3]
    for position, index in enumerate(indices):
        sample, made = source[position], example(split, index)
        np.testing.assert_array_equal(sample.image, made["image"])
        expected = made["mask"][..., 0].astype(int) - 1
        np.testing.assert_array_equal(sample.labels, np.where(expected < 0, 255, expected))
    names = [source[position].name for position in range(len(source))]
    assert len(set(names)) == len(indices) == len({source.version(position) for position in range(len(source))})


def test_classes_need_names(prepared, tmp_path):
    shutil.copytree(prepared / "pets/small/1.2.0", tmp_path / "pets/small/1.2.0")
    with pytest.raises(
        DataError, match=r"1.2.0 has no names of classes: give a table .*, or write .*/classes.txt, one"
    ):
        open_source(config_of(tmp_path, name="pets/small"), "training")
    write_classes(tmp_path / "pets/small/1.2.0/classes.csv", CLASSES)
    assert_as_made(open_source(config_of(tmp_path, name="pets/small"), "training"), "train", [0, 1, 2])


@pytest.mark.parametrize("name", ["pets/small", "pets/small:1.2.0", ""])
def test_a_builder_of_its_own(prepared, name):
    config = config_of(prepared if name else prepared / "pets/small/1.2.0", name=name)
    if not name:
        config.data.dataset = str(prepared / "classes.csv")
    assert_as_made(open_source(config, "training"), "train", [0, 1, 2])
    validation = open_source(config, "validation")
    assert_as_made(validation, "test", [0, 1])
    version = {"pets/small": "1.10.0"}.get(name, "1.2.0")  # the newest, not the last in the alphabet
    assert f"pets/small/{version} test " in validation.version(0)
    assert "tensorflow" not in sys.modules


def test_a_part_of_a_split(prepared):
    config = config_of(prepared, name="pets/small", training="train[1:]")
    assert_as_made(open_source(config, "training"), "train", [1, 2])


def test_fields_by_configuration(prepared):
    config = config_of(prepared, name="pets/with_depth", labels="mask", image="image")
    assert_as_made(open_source(config, "training"), "train", [0, 1, 2])
    config.data.tfds.labels = ""
    with pytest.raises(
        DataError, match=r"several fields may be its label map .1 channel.; .*depth \(1 channel\), .*mask \(1 channel\)"
    ):
        open_source(config, "training")


def test_in_a_bucket(prepared, bucket_folder):
    config = config_of(upload(prepared, bucket_folder), name="pets/small:1.2.0")
    assert_as_made(open_source(config, "training"), "train", [0, 1, 2])
    del config.data.tfds.name
    config.data.tfds.name = "pets/small"
    assert "1.10.0" in open_source(config, "training").version(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "pets"}, "pets is no prepared data set; there is small, with_depth"),
        ({"name": "pets/small:3.0.0"}, "3.0.0 is no prepared data set; there is 1.10.0, 1.2.0"),
        ({"name": "cats"}, "cats is no prepared data set; there is no data set of this name"),
        ({"name": "../pets"}, "config.data.tfds.name = '../pets': write NAME, NAME:VERSION or"),
        ({"name": ""}, "holds no prepared data set; name the folder"),
        ({"training": "all"}, "has no split 'all'; its splits are test, train"),
        ({"training": ""}, "has no split ''; its splits are test, train"),
        ({"training": "train[a"}, r"split 'train\[a' cannot be opened"),
        (
            {"labels": "label"},
            r"config.data.tfds.labels = 'label' is no picture of .*; its pictures are .*image \(3 channels",
        ),
        ({"image": "mask"}, "config.data.tfds.image and config.data.tfds.labels are both 'mask'"),
        ({"labels": "image", "image": "mask"}, "the label map of pets/small/1.10.0/train/0: is a picture of mode RGB"),
    ],
)
def test_mistakes(prepared, fields, message):
    config = config_of(prepared, **{"name": "pets/small", **fields})
    with pytest.raises(DataError, match=message) as error:
        open_source(config, "training")[0]
    assert "\n" not in str(error.value)


def test_other_ids_than_those_of_the_classes(prepared):
    config = config_of(prepared, name="pets/small")
    config.data.reduce_zero_label = False
    with pytest.raises(
        DataError, match=r"label map of pets/small/1.10.0/train/0: holds the id 3, but only 0 to 2, 255"
    ):
        open_source(config, "training")[0]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({}, "no field is a photo .3 channels.; it has no pictures, so it has nothing to learn"),
        (
            {"image": (None, None, 3)},
            r"no field is a label map .1 channel.; its pictures are image \(3 channels\); name the label",
        ),
    ],
)
def test_data_without_label_maps(tmp_path, pictures, message):
    build(tmp_path, pictures=pictures)
    write_classes(tmp_path / "classes.csv", CLASSES)
    with pytest.raises(DataError, match=message):
        open_source(config_of(tmp_path, name="pets/small"), "training")


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    """A copy of the data set's folder, to be changed."""
    shutil.copytree(prepared / "pets/small/1.2.0", tmp_path / "copy")
    shutil.copy(prepared / "classes.csv", tmp_path / "copy")
    return tmp_path / "copy"


def test_files_of_another_format(copied):
    edit(copied / "dataset_info.json", '"fileFormat": "array_record"', '"fileFormat": "tfrecord"')
    with pytest.raises(
        DataError, match=r"only TensorFlow reads .tfrecord.; prepare the data set again with file_format"
    ) as e:
        open_source(config_of(copied), "training")
    assert "\n" not in str(e.value)


def test_no_code_is_loaded(copied, tmp_path, monkeypatch):
    (tmp_path / "foreign_code.py").write_text("raise SystemExit('code of a data set was run')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(copied / "features.json", "tensorflow_datasets.core.features.text_feature.Text", "foreign_code.Text")
    with pytest.raises(DataError, match="features.json: names the code 'foreign_code.Text', which is not loaded"):
        open_source(config_of(copied), "training")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "pets-train.array_record-00000-of-00001"])
@pytest.mark.parametrize("damage", ["absent", "cut", "other"])
def test_damaged_files(copied, name, damage):
    file = copied / name
    content = file.read_bytes()
    file.unlink()
    if damage != "absent":
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"[1]")
    with pytest.raises(DataError, match="pets/small|^" + str(copied)) as error:
        source = open_source(config_of(copied), "training")
        for index in range(len(source)):
            source[index]
    assert "\n" not in str(error.value)


def test_oxford_iiit_pet(tmp_path):
    _, made = build_standard(tmp_path, "oxford_iiit_pet", max_value=4)
    write_classes(tmp_path / "classes.csv", CLASSES)
    source = open_source(config_of(tmp_path, name="oxford_iiit_pet:4.0.0"), "training")
    for index, values in enumerate(made):
        expected = values["segmentation_mask"][..., 0].astype(int) - 1
        np.testing.assert_array_equal(source[index].labels, np.where(expected < 0, 255, expected))
        assert source[index].image.shape == values["image"].shape  # a JPEG


def test_cityscapes(tmp_path):
    _, made = build_standard(tmp_path, "cityscapes/semantic_segmentation", max_value=34)
    config = load_config("configs/cityscapes.py:r50")
    config.data.update(source="tfds", root=str(tmp_path))
    config.data.tfds.name = "cityscapes/semantic_segmentation"
    source = open_source(config, "training")
    for index, values in enumerate(made):
        np.testing.assert_array_equal(source[index].image, values["image_left"])
        expected = np.full((1024, 2048), 255)
        for class_id, label_id in enumerate(load_classes("cityscapes").label_ids):
            expected[values["segmentation_label"][..., 0] == label_id] = class_id
        np.testing.assert_array_equal(source[index].labels, expected)


def test_scene_parse150(tmp_path):
    """Its annotations are of instances: pictures of three channels, which are refused."""
    build_standard(tmp_path, "scene_parse150", max_value=100)
    write_classes(tmp_path / "classes.csv", CLASSES)
    config = config_of(tmp_path, name="scene_parse150")
    with pytest.raises(
        DataError, match="several fields may be its photo .3 channels.; .*annotation .3 channels., image .3"
    ):
        open_source(config, "training")
    config.data.tfds.update(image="image", labels="annotation")
    with pytest.raises(DataError, match="the label map of scene_parse150/1.0.0/train/0: is a picture of mode RGB"):
        open_source(config, "training")[0]
