import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.runtime.files import WriteError
from fasseg_jax.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.full_disk import limited_files

CONFIGS = [f"configs/ade20k.py:{name}" for name in ("r50", "swin_b", "mask2former_r101")] + [
    "configs/cityscapes.py:r50"
]
VARIABLES = {
    "params": {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.float32([0.5, -1])},
        "b": jnp.linspace(0, 1, 5),
    },
    "batch_stats": {"a": {"mean": np.zeros(4, np.float32)}},
}


def save(path, overwrite=False, variables=VARIABLES):
    save_checkpoint(path, load_config("configs/ade20k.py:r50"), variables, load_classes("ade20k"), overwrite=overwrite)


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_and_classes_come_back(tmp_path, name):
    config = load_config(name)
    config.model.decoder.num_queries = 7
    classes = load_classes(config.data.dataset)
    save_checkpoint(tmp_path / "c", config, VARIABLES, classes, contents="backbone")
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.config == config  # its sequences are tuples, which never equal lists
    assert loaded.contents == "backbone"
    assert loaded.classes.names == classes.names
    np.testing.assert_array_equal(loaded.classes.palette, classes.palette, strict=True)


def test_variables_come_back_as_numpy(tmp_path):
    save(tmp_path / "below" / "c")
    loaded = load_checkpoint(tmp_path / "below" / "c")
    assert loaded.contents == "model"
    assert loaded.variables.keys() == VARIABLES.keys()
    params = loaded.variables["params"]
    np.testing.assert_array_equal(params["a"]["kernel"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(params["a"]["bias"], [0.5, -1])
    np.testing.assert_array_equal(params["b"], np.asarray(VARIABLES["params"]["b"]))
    np.testing.assert_array_equal(loaded.variables["batch_stats"]["a"]["mean"], np.zeros(4))
    assert {type(value) for value in (params["a"]["kernel"], params["b"])} == {np.ndarray}
    assert {value.dtype for value in (params["a"]["kernel"], params["b"])} == {np.dtype(np.float32)}


def test_relative_paths_and_silence(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("WARNING"):
        save("c")
        load_checkpoint("c")
    assert caplog.messages == [] and capfd.readouterr() == ("", "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["c"]


def test_nothing_is_overwritten_unless_asked_for(tmp_path):
    (tmp_path / "c").mkdir()
    save(tmp_path / "c")  # an empty directory may exist
    with pytest.raises(FileExistsError, match="c: the directory is not empty; .* --overwrite"):
        save(tmp_path / "c", variables={"params": {"other": np.ones(3, np.float32)}})
    assert "a" in load_checkpoint(tmp_path / "c").variables["params"]
    save(tmp_path / "c", overwrite=True, variables={"params": {"other": np.ones(3, np.float32)}})
    assert list(load_checkpoint(tmp_path / "c").variables["params"]) == ["other"]


def test_other_things_are_never_overwritten(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for path, message in ((tmp_path, "something other than a checkpoint"), (tmp_path / "photo.jpg", "is a file")):
        with pytest.raises(FileExistsError, match=message):
            save(path, overwrite=True)
    assert (tmp_path / "photo.jpg").read_bytes() == b"x"


INTERRUPTED_SAVES = {
    "error": """
import sys
from pathlib import Path
from tests.weights.test_checkpoint import save

save(Path(sys.argv[1]), variables={"params": {"b": object()}})  # no array
""",
    "kill": """
import os, sys
from pathlib import Path
from tests.weights.test_checkpoint import save

sys.addaudithook(lambda event, _: event == "os.rename" and os._exit(9))  # before anything gets its final name
save(Path(sys.argv[1]))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("interruption", INTERRUPTED_SAVES)
def test_an_interrupted_save_leaves_no_checkpoint(tmp_path, interruption):
    """In a process of its own, because Orbax's threads continue to write for a while after a failure."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_SAVES[interruption], tmp_path / "c"], env=environment, check=False
    )
    assert process.returncode == {"error": 1, "kill": 9}[interruption]
    left = list(tmp_path.iterdir())
    assert bool(left) == (interruption == "kill")  # after an error, nothing is left; otherwise, the save had begun
    with pytest.raises(FileNotFoundError, match="c: no such checkpoint"):
        load_checkpoint(tmp_path / "c")
    save(tmp_path / "c")  # what the first attempt left behind does not matter
    assert "b" in load_checkpoint(tmp_path / "c").variables["params"]


def test_missing_and_foreign_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such checkpoint"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(ValueError, match="not a checkpoint directory"):
        load_checkpoint(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.pth: not a checkpoint .* fasseg convert makes one"):
        load_checkpoint(tmp_path / "weights.pth")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's threads fail as well
@pytest.mark.parametrize("part", ["variables", "variables/d", "variables/manifest.ocdbt", "variables/_METADATA"])
def test_incomplete_checkpoints(tmp_path, part):
    save(tmp_path / "c")
    target = tmp_path / "c" / part
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    with pytest.raises(ValueError, match="c: the checkpoint is damaged or incomplete"):
        load_checkpoint(tmp_path / "c")


def test_damaged_and_later_metadata(tmp_path):
    save(tmp_path / "c")
    file = tmp_path / "c" / "metadata" / "metadata"
    metadata = json.loads(file.read_text())
    without_palette = {**metadata, "classes": {**metadata["classes"], "palette": [[1, 2, 3]]}}
    for content in ("{", "[]", "{}", json.dumps(without_palette)):
        file.write_text(content)
        with pytest.raises(ValueError, match="c: the checkpoint is damaged or incomplete"):
            load_checkpoint(tmp_path / "c")
    file.write_text(json.dumps({**metadata, "format": 2}))
    with pytest.raises(ValueError, match=r"c: written by a later version of fasseg_jax \(format 2\)"):
        load_checkpoint(tmp_path / "c")


def test_class_tables_of_the_package():
    ade20k, cityscapes = load_classes("ade20k"), load_classes("cityscapes")
    assert (len(ade20k), len(cityscapes)) == (150, 19)
    assert ade20k.names[:3] == ("wall", "building", "sky") and ade20k.names[149] == "flag"
    np.testing.assert_array_equal(ade20k.palette[[0, 149]], [[120, 120, 120], [92, 0, 255]])
    assert cityscapes.names[0] == "road" and cityscapes.names[18] == "bicycle"
    np.testing.assert_array_equal(cityscapes.palette[[0, 18]], np.array([[128, 64, 128], [119, 11, 32]], np.uint8))


def test_class_table_of_ones_own(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text('id,name,r,g,b\n0,"cat, small",1,2,3\n1,dog,255,0,7\n', encoding="utf-8-sig")
    classes = load_classes(str(file))
    assert classes.names == ("cat, small", "dog")
    np.testing.assert_array_equal(classes.palette, np.array([[1, 2, 3], [255, 0, 7]], np.uint8), strict=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "mine.csv: the first row must name the columns"),
        ("id,r,g,name\n0,1,2,cat\n", r"absent: \['b'\]"),
        ("id,r,g,b,name\n", "mine.csv: holds no classes"),
        ("id,r,g,b,name\n1,1,2,3,cat\n", "mine.csv, line 2: expected id 0"),
        ("id,r,g,b,name\n0,1,2,3,cat\n0,1,2,3,dog\n", "mine.csv, line 3: expected id 1"),
        ("id,r,g,b,name\n0,1,2,256,cat\n", "mine.csv, line 2: r, g, b must be whole numbers"),
        ("id,r,g,b,name\n0,1,2,-3,cat\n", "mine.csv, line 2: r, g, b must be whole numbers"),
        ("id,r,g,b,name\n0,1,2\n", "mine.csv, line 2"),
        ("id,r,g,b,name\n0,1,2,3,\n", "mine.csv, line 2: the class has no name"),
    ],
)
def test_wrong_class_tables(tmp_path, content, message):
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_classes(str(tmp_path / "mine.csv"))


def test_absent_class_tables():
    with pytest.raises(FileNotFoundError, match="no class table 'ade': choose one of ade20k, cityscapes"):
        load_classes("ade")


def test_palette_must_fit_the_names():
    with pytest.raises(ValueError, match="a palette for 2 classes"):
        ClassTable(("a", "b"), np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        ClassTable(("a",), np.zeros((1, 3), np.int64))


@pytest.mark.parametrize("name", ["configs/ade20k.py:r50", "configs/ade20k.py:swin_t"])
def test_fields_that_came_later_have_their_defaults(tmp_path, name):
    config = load_config(name)
    config.model.decoder.num_queries = 7
    save_checkpoint(tmp_path / "c", config, VARIABLES, load_classes("ade20k"))
    file = tmp_path / "c" / "metadata" / "metadata"
    metadata = json.loads(file.read_text())
    del metadata["config"]["model"]["remat"], metadata["config"]["inference"]["multi_scale"]["flip"]
    file.write_text(json.dumps(metadata))
    assert load_checkpoint(tmp_path / "c").config == config


@pytest.mark.slow
@pytest.mark.parametrize("space", [0, 300, 3000, 100_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, space):
    config = load_config("configs/ade20k.py:r50")
    params = np.random.default_rng(0).standard_normal((100, 1000)).astype(np.float32)
    with limited_files(space), pytest.raises(WriteError, match=f"cannot write {tmp_path}/checkpoint: File too large"):
        save_checkpoint(tmp_path / "checkpoint", config, {"params": {"a": params}}, load_classes("ade20k"))
    assert not list(tmp_path.iterdir())
