"""Commands that share and correct predictions, with paths in a bucket; and what stays local is refused in one line."""

import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.importing import __main__ as importing
from fasseg_jax.inference.label_files import LABEL_FORMATS, LabelFiles
from fasseg_jax.runtime.files import list_files, local_copy, make_path
from fasseg_jax.weights import remote
from fasseg_jax.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fasseg_jax.weights.download import RemoteError, download
from fasseg_jax.weights.pretrained import load_pretrained, write_model_folder
from tests.data.test_data_in_buckets import upload
from tests.helpers import ROOT
from tests.helpers.data_cases import write_image
from tests.helpers.tiny import tiny_model
from tests.weights.test_remote import assert_same_model

CLASSES = ClassTable(("wall", "street sign", "car"), np.arange(9, dtype=np.uint8).reshape(3, 3))


@pytest.mark.parametrize("kind", LABEL_FORMATS)
def test_label_files(tmp_path, bucket_folder, kind):
    rng = np.random.default_rng(0)
    write_image(tmp_path / "photos/sub/a b.png", rng.integers(0, 256, (9, 12, 3), np.uint8))
    photos = upload(tmp_path / "photos", f"{bucket_folder}/photos")
    labels = rng.integers(0, 3, (9, 12)).astype(np.uint8)
    for folder, output in ((photos, photos.parent / "out"), (tmp_path / "photos", tmp_path / "out")):
        files = LabelFiles(kind, output, CLASSES)
        photo = folder / "sub" / "a b.png"
        files.add(photo, Path("sub/a b"), "sub/a b.png", labels, 0.25)
        files.finish()
    written = list_files(photos.parent / "out")
    names = [path.relative_to(photos.parent / "out").as_posix() for path in written]
    assert names == [path.relative_to(tmp_path / "out").as_posix() for path in list_files(tmp_path / "out")]
    for path, name in zip(written, names, strict=True):
        if name != "to_correct.csv":
            assert path.read_bytes() == (tmp_path / "out" / name).read_bytes()
    rows = list(csv.reader(io.StringIO((photos.parent / "out/to_correct.csv").read_text())))
    assert rows == [["photo", "uncertainty"], [f"{photos}/sub/a b.png", "0.25"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(folder, *tiny_model(), load_classes("cityscapes"))
    return load_checkpoint(folder)


def test_a_model_folder(tmp_path, bucket_folder, model, monkeypatch):
    folder = make_path(bucket_folder) / "shared"
    write_model_folder(str(folder), model)
    write_model_folder(tmp_path / "shared", model)
    assert_same_model(load_pretrained(str(folder)), model)
    with pytest.raises(FileExistsError, match=f"{folder}: the directory is not empty"):
        write_model_folder(folder, model)
    write_model_folder(folder, model, overwrite=True)
    uploaded = {}

    class Hub:
        """In place of huggingface_hub, which opens local folders."""

        def create_repo(self, name, **_):
            return f"https://hub/{name}"

        def upload_folder(self, folder_path, **_):
            uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    monkeypatch.setattr(remote, "_hub_library", lambda: type("library", (), {"HfApi": lambda **_: Hub()}))
    assert remote.upload(folder, "me/model") == "https://hub/me/model"
    assert uploaded == {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()}
    assert "model.safetensors" in uploaded


def test_a_local_copy_of_a_folder(tmp_path, bucket_folder):
    for name in ("a.txt", "sub/b 1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with local_copy(upload(tmp_path, f"{bucket_folder}/folder")) as copy:
        assert {path.relative_to(copy).as_posix(): path.read_text() for path in list_files(copy)} == {
            "a.txt": "a.txt",
            "sub/b 1.txt": "sub/b 1.txt",
        }
    assert not copy.exists()


@pytest.fixture
def reproduce():
    """The script, whose flags are forgotten again."""
    before = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location("reproduce", ROOT / "scripts/reproduce.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


def test_weights_are_converted_once(tmp_path, bucket_folder, model, monkeypatch, reproduce):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.bin").write_bytes(b"weights" * 1000)
    weights, workdir = upload(tmp_path / "weights", f"{bucket_folder}/weights"), make_path(bucket_folder) / "run"
    assert reproduce.digest(weights) == reproduce.digest(tmp_path / "weights")
    assert reproduce.digest(weights / "a.bin") == reproduce.digest(tmp_path / "weights/a.bin")
    written = []

    def convert(config, weights, output, overwrite):
        written.append(save_checkpoint(output, model.config, model.variables, model.classes, overwrite=overwrite))

    monkeypatch.setattr(reproduce, "convert", convert)
    for _ in range(2):
        assert reproduce.convert_once(model.config, "tiny", str(weights), workdir) == workdir / "checkpoint"
    assert len(written) == 1
    assert_same_model(load_checkpoint(workdir / "checkpoint"), model)
    assert json.loads((workdir / "weights.json").read_text())["model"] == "tiny"
    with pytest.raises(ValueError, match=f"{workdir}: holds another model"):
        reproduce.convert_once(model.config, "other", str(weights), workdir)


@pytest.mark.parametrize("name", ["input", "output", "photos", "classes"])
def test_imports_are_local(tmp_path, monkeypatch, capsys, name):
    given = {"input": str(tmp_path), "output": str(tmp_path / "new"), name: "gs://bucket/folder"}
    values = flags.FlagValues()
    monkeypatch.setattr(importing.flags, "FLAGS", values)
    for flag in ("input", "output", "photos", "classes", "format"):
        flags.DEFINE_string(flag, given.get(flag), "", flag_values=values)
    for flag in ("overlap", "unlabeled", "orientation"):
        flags.DEFINE_string(flag, None, "", flag_values=values)
    flags.DEFINE_string("group", "auto", "", flag_values=values)
    for flag in ("validation", "tolerance"):
        flags.DEFINE_float(flag, 0, "", flag_values=values)
    values(["import"])
    assert importing.main(["import"]) == 2
    errors = capsys.readouterr().err
    assert f"--{name}=gs://bucket/folder: imports read and write local folders" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_downloads_are_local(monkeypatch):
    monkeypatch.setenv("FASSEG_CACHE", "gs://bucket/cache")
    with pytest.raises(RemoteError, match="FASSEG_CACHE=gs://bucket/cache: downloads are kept on a disk"):
        download("https://localhost:1/weights.pth")
