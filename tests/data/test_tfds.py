"""Data sets prepared as array_record files give the same samples as the folders."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, TrainingBatches, open_source, read_ahead
from fasseg_jax.data.tfds import prepare
from fasseg_jax.runtime.files import WriteError
from tests.helpers import ROOT
from tests.helpers.data_cases import folder_config, small_crops, write_folder, write_image
from tests.helpers.full_disk import limited_files


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The folder data set and the prepared one."""
    root = write_folder(tmp_path_factory.mktemp("data") / "small")
    return root, prepare(folder_config(root), root.parent / "prepared")


def prepared_config(folder: Path):
    config = small_crops(load_config(f"configs/folder.py:{folder}"))
    config.data.source = "tfds"
    return config


def test_without_the_library_one_line_names_the_extra(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match=r'^\S+: prepared data need .+: pip install "fasseg_jax\[tfds\]"$'):
        open_source(prepared_config(folders[1]), "training")


@pytest.mark.parametrize("split", ["training", "validation"])
def test_same_samples(folders, split):
    root, prepared = folders
    source = open_source(folder_config(root), split)
    expected = {
        Path(sample.name).relative_to(root).as_posix(): sample for sample in map(source.__getitem__, range(len(source)))
    }
    got = open_source(prepared_config(prepared), split)
    assert got.classes.names == source.classes.names
    np.testing.assert_array_equal(got.classes.palette, source.classes.palette)
    np.testing.assert_array_equal(got.file_ids, source.file_ids)
    samples = [got[index] for index in range(len(got))]
    assert {sample.name for sample in samples} == expected.keys()
    for sample in samples:
        np.testing.assert_array_equal(sample.image, expected[sample.name].image)
        np.testing.assert_array_equal(sample.labels, expected[sample.name].labels)
    assert "tensorflow" not in sys.modules


def test_threads_read_the_same(folders):
    config = prepared_config(folders[1])
    config.train.steps = 12
    batches = TrainingBatches(open_source(config, "training"), config, seed=0)
    for step, batch in enumerate(read_ahead(batches, config.data)):
        again = dataclasses.asdict(batches[step])
        for name, value in dataclasses.asdict(batch).items():
            np.testing.assert_array_equal(value, again[name])
    assert step == 11


def test_wide_labels(tmp_path):
    root = write_folder(tmp_path / "wide")
    for split in ("training", "validation"):
        labels = np.full((40, 52), 1000, np.uint16)
        labels[:, 0] = 2
        write_image(root / f"annotations/{split}/0.png", labels)
        for index in (1, 2, 3, 4):
            (root / f"images/{split}/{index}.jpg").unlink(missing_ok=True)
            (root / f"annotations/{split}/{index}.png").unlink(missing_ok=True)
    config = folder_config(root)
    config.data.ignore_label = 1000
    config.data.update(source="tfds", root=str(prepare(config, tmp_path)))
    got = open_source(config, "training")[0].labels
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, labels)


def test_mistakes(folders, tmp_path):
    root, prepared = folders
    with pytest.raises(DataError, match="is there already; delete it"):
        prepare(folder_config(root), root.parent / "prepared")
    config = prepared_config(prepared)
    with pytest.raises(DataError, match="can be prepared"):
        prepare(config, tmp_path)
    config.data.ignore_label = 254
    with pytest.raises(DataError, match=r"another ignore label \(255\)"):
        open_source(config, "training")
    config.data.root = str(root)
    with pytest.raises(DataError, match="holds no prepared data set"):
        open_source(config, "training")


def test_bad_file_stops_the_preparation(tmp_path):
    root = write_folder(tmp_path / "bad")
    (root / "images/validation/1.jpg").write_bytes(b"?")
    with pytest.raises(DataError, match=r"validation/1\.jpg: cannot be read as a picture"):
        prepare(folder_config(root), tmp_path / "prepared")
    assert not list((tmp_path / "prepared").rglob("dataset_info.json"))


@pytest.mark.parametrize("space", [0, 1000, 30_000])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, space):
    config = folder_config(write_folder(tmp_path / "small"))
    with limited_files(space), pytest.raises(WriteError, match=f"cannot write {tmp_path}/prepared/") as error:
        prepare(config, tmp_path / "prepared")
    assert "\n" not in str(error.value)
    assert open_source(prepared_config(prepare(config, tmp_path / "prepared")), "training")


@pytest.mark.slow
def test_an_absent_library_is_named_in_one_line(tmp_path):
    (tmp_path / "tensorflow_datasets.py").write_text("raise ImportError")
    program = subprocess.run(
        [sys.executable, "-m", "fasseg_jax.data.tfds", "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    line = 'tfds.py: preparing data needs tensorflow-datasets: pip install "fasseg_jax[tfds]"\n'
    assert (program.returncode, program.stdout, program.stderr) == (1, "", line)
