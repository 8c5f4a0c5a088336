"""Data in a bucket give the same samples as on a disk."""

import subprocess
import sys

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, open_source
from fasseg_jax.data.classes import load_classes, write_classes
from fasseg_jax.data.images import open_photo
from fasseg_jax.data.tfds import prepare
from fasseg_jax.runtime.files import copy_file, list_files, make_path
from tests.helpers import ROOT
from tests.helpers.data_cases import folder_config, small_crops, write_folder, write_image


def upload(folder, bucket_folder: str):
    """Copy a local folder; returns its path in the bucket."""
    for file in list_files(folder):
        copy_file(file, make_path(bucket_folder) / file.relative_to(folder).as_posix())
    return make_path(bucket_folder)


def assert_same_samples(source, expected, root, local_root):
    assert len(source) == len(expected) and source.problems == ()
    assert source.classes.names == expected.classes.names
    for index in range(len(expected)):
        got, wanted = source[index], expected[index]
        assert got.name.removeprefix(f"{root}/") == wanted.name.removeprefix(f"{local_root}/")
        np.testing.assert_array_equal(got.image, wanted.image)
        np.testing.assert_array_equal(got.labels, wanted.labels)


@pytest.mark.parametrize("split", ["training", "validation"])
def test_a_folder(tmp_path, bucket_folder, split):
    local = write_folder(tmp_path / "data")
    write_image(local / "images/training/sub folder/50% #1.jpg", np.zeros((20, 30, 3), np.uint8))
    write_image(local / "annotations/training/sub folder/50% #1.png", np.zeros((20, 30), np.uint8))
    root = upload(local, bucket_folder)
    source = open_source(folder_config(root), split)
    assert_same_samples(source, open_source(folder_config(local), split), root, local)
    version = source.version(0)
    assert source.version(0) == version
    file = root / "images" / split / "0.jpg"
    file.write_bytes(file.read_bytes())
    assert source.version(0) != version
    file.unlink()
    with pytest.raises(DataError, match=f"{file}: cannot be read .No such file"):
        source[0]
    with pytest.raises(DataError, match=f"{file}: cannot be read .No such file"):
        source.version(0)


def test_cityscapes(tmp_path, bucket_folder):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        image = tmp_path / f"leftImg8bit/{split}/ulm/ulm_0_leftImg8bit.png"
        write_image(image, rng.integers(0, 256, (12, 16, 3), np.uint8))
        labels = rng.integers(0, 34, (12, 16), np.uint8)
        write_image(tmp_path / f"gtFine/{split}/ulm/ulm_0_gtFine_labelIds.png", labels)
    root = upload(tmp_path, bucket_folder)
    sources = []
    for folder in (root, tmp_path):
        config = load_config("configs/cityscapes.py:r50")
        config.data.root = str(folder)
        sources.append(open_source(config, "validation"))
    assert_same_samples(*sources, root, tmp_path)


def test_prepared_data(tmp_path, bucket_folder):
    """Prepared from a bucket to a bucket, and from a disk to a disk."""
    local = write_folder(tmp_path / "data")
    root = upload(local, f"{bucket_folder}/data")
    prepared = prepare(folder_config(root), f"{bucket_folder}/prepared")
    on_disk = prepare(folder_config(local), tmp_path / "prepared")
    assert str(prepared).startswith(f"{bucket_folder}/prepared/segmentation/")
    names = {path.relative_to(prepared).as_posix() for path in list_files(prepared)}
    assert names == {path.relative_to(on_disk).as_posix() for path in list_files(on_disk)}
    sources = []
    for folder in (prepared, on_disk):
        config = small_crops(load_config(f"configs/folder.py:{folder}"))
        config.data.source = "tfds"
        sources.append(open_source(config, "training"))
    assert_same_samples(*sources, prepared, on_disk)
    assert sources[0].version(1) == sources[0].version(1) != sources[0].version(2)
    with pytest.raises(DataError, match=f"{prepared} is there already"):
        prepare(folder_config(root), f"{bucket_folder}/prepared")


def test_class_tables_and_photos(bucket_folder, tmp_path):
    table = make_path(bucket_folder) / "classes.csv"
    write_classes(table, load_classes("cityscapes"))
    read = load_classes(str(table))
    assert read.names == load_classes("cityscapes").names and read.label_ids == load_classes("cityscapes").label_ids
    with pytest.raises(FileNotFoundError, match="no class table"):
        load_classes(f"{bucket_folder}/absent.csv")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    write_image(tmp_path / "photo.png", pixels)
    copy_file(tmp_path / "photo.png", make_path(bucket_folder) / "photo.png")
    np.testing.assert_array_equal(open_photo(make_path(bucket_folder) / "photo.png"), pixels)


@pytest.mark.parametrize("root", ["gs://absent-bucket/data", "s3://bucket/data"])
def test_data_that_cannot_be_read(emulator, root):
    config = load_config("configs/ade20k.py:r50")
    config.data.root = root
    with pytest.raises(ValueError, match=f"{root}") as error:
        open_source(config, "training")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_check_of_data(tmp_path, bucket_folder):
    root = upload(write_folder(tmp_path / "data"), bucket_folder)
    command = [sys.executable, "train.py", "--config", f"configs/folder.py:{root}", "--check"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0 and "training: 5 images" in run.stdout and "validation: 2 images" in run.stdout, run
