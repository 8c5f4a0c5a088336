"""Checkpoints in a bucket: complete ones are kept and found, incomplete ones are not."""

import numpy as np
import pytest

from fasseg_jax.config import base_config
from fasseg_jax.data.classes import load_classes
from fasseg_jax.runtime.files import copy_file, list_files, make_path
from fasseg_jax.weights.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from tests.training.test_checkpoints import open_run, save


def steps(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_best_and_the_latest_are_kept(bucket_folder):
    folder = make_path(bucket_folder)
    run = open_run(folder)
    save(run, (1, None), (2, 0.5), (3, None), (4, 0.3), (5, None))
    run.close()
    assert steps(folder) == ["2", "4", "5"] and find_checkpoint(bucket_folder)[0] == folder / "checkpoints" / "2"
    run = open_run(folder)
    assert (run.latest_step, run.best_step) == (5, 2)
    run.close()
    for step in (2, 4, 5):
        loaded = load_checkpoint(f"{bucket_folder}/checkpoints/{step}")
        np.testing.assert_array_equal(loaded.variables["params"]["a"], np.ones(3))


def test_an_incomplete_checkpoint_is_never_chosen(bucket_folder):
    """As a killed run leaves it: everything but the mark at the end."""
    folder = make_path(bucket_folder)
    run = open_run(folder)
    save(run, (1, 0.1), (2, 0.9))
    run.close()
    for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
        (folder / "checkpoints/2" / name).unlink()
    (left := folder / "checkpoints/2/left").write_text("of the interrupted write")
    assert find_checkpoint(bucket_folder)[0] == folder / "checkpoints/1"
    with pytest.raises(ValueError, match="2: an incomplete checkpoint; its writing was interrupted"):
        load_checkpoint(f"{bucket_folder}/checkpoints/2")
    run = open_run(folder)
    assert (run.latest_step, run.best_step) == (1, 1)
    save(run, (2, 0.8))  # Orbax removes what is left in the background, and waits for that before it saves
    run.close()
    assert steps(folder) == ["1", "2"] and not left.exists()
    assert find_checkpoint(bucket_folder)[0] == folder / "checkpoints/2"


def test_a_removal_that_is_interrupted_leaves_an_incomplete_checkpoint(bucket_folder, monkeypatch):
    folder = make_path(bucket_folder)
    run = open_run(folder)
    save(run, (1, None), (2, None))
    run.close()
    storage = type(folder.storage)
    delete = storage.delete_objects
    monkeypatch.setattr(storage, "delete_objects", lambda self, keys: delete(self, list(keys)[:2]))
    (folder / "checkpoints/2").rmtree()
    monkeypatch.undo()
    assert len(list_files(folder / "checkpoints/2")) > 3
    assert find_checkpoint(bucket_folder)[0] == folder / "checkpoints/1"


def test_a_run_that_was_copied_from_a_disk_is_resumed(tmp_path, bucket_folder):
    """Local checkpoints have no mark at the end; Orbax would remove them as incomplete."""
    run = open_run(tmp_path)
    save(run, (1, 0.5), (2, 0.4))
    run.close()
    folder = make_path(bucket_folder)
    for file in list_files(tmp_path):
        copy_file(file, folder / file.relative_to(tmp_path).as_posix())
    assert find_checkpoint(bucket_folder)[0] == folder / "checkpoints/1"
    np.testing.assert_array_equal(load_checkpoint(bucket_folder).variables["params"]["a"], np.ones(3))
    run = open_run(folder)
    assert (run.latest_step, run.best_step) == (2, 1)
    run.close()
    assert steps(folder) == ["1", "2"]


def test_checkpoints_of_the_converter(bucket_folder):
    path = f"{bucket_folder}/checkpoint"
    classes = load_classes("ade20k")
    for value in (1.0, 2.0):
        save_checkpoint(path, base_config(), {"params": {"a": np.full(3, value)}}, classes, overwrite=value > 1)
        np.testing.assert_array_equal(load_checkpoint(path).variables["params"]["a"], np.full(3, value))
    with pytest.raises(FileExistsError, match="the directory is not empty"):
        save_checkpoint(path, base_config(), {"params": {"a": np.ones(3)}}, classes)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(f"{bucket_folder}/absent")
    (make_path(bucket_folder) / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        save_checkpoint(f"{bucket_folder}/file", base_config(), {"params": {}}, classes, overwrite=True)
