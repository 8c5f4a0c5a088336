"""Classes of a folder: names without colors, YAML, and the ids that label maps hold."""

import re

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, data_classes, describe_data
from fasseg_jax.data.class_files import NoClassesError, folder_classes
from fasseg_jax.data.palette import choose_colors
from tests.helpers.data_cases import write_image


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classes.txt", "background\nstreet  sign\n\n2 wheeler\n"),
        ("classes.txt", "0 background\n1 street sign\n2 2 wheeler\n"),
        ("classes.yaml", "names:\n- background\n- street sign\n- 2 wheeler\n"),
        ("classes.yml", "names: {1: street sign, 0: background, 2: 2 wheeler}\n"),
        ("data.yaml", "train: images\nnc: 3\nnames: [background, street sign, 2 wheeler]\n"),
    ],
)
def test_names_without_colors(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    classes = folder_classes(tmp_path)
    assert classes.names == ("background", "street sign", "2 wheeler")
    np.testing.assert_array_equal(classes.palette, choose_colors(classes.names))
    assert classes.palette.tolist() == [[0, 0, 0], [230, 159, 0], [86, 180, 233]]  # black, and Okabe and Ito's first


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.yaml", "names: [", "classes.yaml: is no YAML"),
        ("classes.yaml", "- sky", "classes.yaml: names must list the classes"),
        ("classes.yaml", "names: {1: sky}", "the ids of names must run from 0"),
        ("classes.yaml", "names: [sky, [road]]", "name 1 is \"['road']\", not the name of a class"),
        ("classes.yaml", "names: [sky, ]\n\x07", "classes.yaml: is no YAML"),
        ("classes.yaml", 'names: ["a\\x1b[2J"]', "holds control characters"),
        ("classes.yaml", "!!python/object/apply:os.system ['true']", "classes.yaml: is no YAML"),
        ("classes.txt", "a" * 1000, "is too long for a name; write a name of a class in each line"),
    ],
)
def test_mistakes(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        folder_classes(tmp_path)


def write_labels(root, **rows):
    for name, row in rows.items():
        write_image(root / f"images/{name}.jpg", np.zeros((1, len(row), 3), np.uint8))
        write_image(root / f"masks/{name}.png", np.array([row], np.uint8 if max(row) < 256 else np.uint16))


def test_ids_of_label_maps(tmp_path):
    write_labels(tmp_path, a=[0, 3, 255], b=[255, 255, 255], c=[5, 0, 0])
    config = load_config(f"configs/folder.py:{tmp_path}")
    assert config.model.num_classes == 6
    assert data_classes(config.data).names == tuple(f"class {index}" for index in range(6))
    line = describe_data(config.data)[1]
    assert line.startswith(
        f"{tmp_path} has no file of classes: the ids of its label maps are called class 0 to class 5"
    )
    assert line.endswith(f"write names into {tmp_path / 'classes.txt'}, one a line")
    assert len(folder_classes(tmp_path, reduce_zero_label=True)) == 5
    assert len(folder_classes(tmp_path, ignore_label=5)) == 256
    (tmp_path / "data.yaml").write_text("train: images\n")  # no names
    assert len(folder_classes(tmp_path)) == 6
    write_labels(tmp_path, d=[0, 7])  # a file that changes is read again
    assert len(folder_classes(tmp_path)) == 8
    (tmp_path / "masks/d.png").write_bytes(b"damaged")  # is reported when it is read as a sample
    assert len(folder_classes(tmp_path)) == 6


def test_label_maps_that_tell_no_ids(tmp_path):
    write_labels(tmp_path, a=[255, 255])
    with pytest.raises(NoClassesError, match="all pixels of its label maps are ignored"):
        folder_classes(tmp_path)
    write_labels(tmp_path, a=[0, 30000])
    with pytest.raises(DataError, match="ids in its label maps go up to 30000, as those of objects do"):
        folder_classes(tmp_path)
    write_image(tmp_path / "masks/a.png", np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(NoClassesError, match=r"masks/a.png: is a picture of mode RGB"):
        folder_classes(tmp_path)
