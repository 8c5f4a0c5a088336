"""Models of the Hub, by a server that stands in for it: fetching, refusals, offline, and uploading."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fasseg_jax.data.classes import load_classes
from fasseg_jax.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fasseg_jax.weights.pretrained import METADATA, is_model_folder, load_pretrained, write_model_folder
from fasseg_jax.weights.remote import RemoteError, fetch
from tests.helpers import ROOT
from tests.helpers.hub import serve
from tests.helpers.tiny import tiny_model

CLASSES = load_classes("cityscapes")


def assert_same_model(first, second):
    assert first.config == second.config and first.classes.names == second.classes.names
    np.testing.assert_array_equal(first.classes.palette, second.classes.palette)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint, and the same model as a folder to share."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder / "checkpoint", *tiny_model(), CLASSES)
    checkpoint = load_checkpoint(folder / "checkpoint")
    write_model_folder(folder / "shared", checkpoint)
    return checkpoint, folder


def test_a_model_folder_holds_the_same_model(model):
    checkpoint, folder = model
    assert is_model_folder(folder / "shared") and not is_model_folder(folder / "checkpoint")
    assert_same_model(load_pretrained(folder / "shared"), checkpoint)
    assert_same_model(load_pretrained(folder / "checkpoint"), checkpoint)
    description = json.loads((folder / "shared" / "config.json").read_text())
    assert description["id2label"]["0"] == "road" and description["label2id"]["bicycle"] == 18


def test_a_model_folder_is_not_replaced_by_mistake(model, tmp_path):
    checkpoint, _ = model
    write_model_folder(tmp_path / "a", checkpoint)
    with pytest.raises(FileExistsError, match="a: the directory is not empty"):
        write_model_folder(tmp_path / "a", checkpoint)
    write_model_folder(tmp_path / "a", checkpoint, overwrite=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="b: the directory is not empty"):
        write_model_folder(tmp_path / "b", checkpoint, overwrite=True)
    with pytest.raises(ValueError, match="holds only a backbone"):
        write_model_folder(tmp_path / "c", Checkpoint(checkpoint.config, checkpoint.variables, CLASSES, "backbone"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "contents": "model", "config": {}}'])
def test_damaged_metadata_are_one_line(model, tmp_path, text):
    checkpoint, _ = model
    write_model_folder(tmp_path / "a", checkpoint)
    (tmp_path / "a" / METADATA).write_text(text)
    with pytest.raises(ValueError, match=f"a/{METADATA}: (the checkpoint is damaged|written by a later)") as caught:
        load_pretrained(tmp_path / "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf://model", "hf://a/b@", "hf://a/b@v1@v2", "hf:///b", "hf://a/b/", "hf://a b/c"])
def test_wrong_names(name):
    with pytest.raises(RemoteError, match="give hf://OWNER/NAME"):
        fetch(name)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RemoteError, match=r'need huggingface_hub: pip install "fasseg_jax\[hub\]"'):
        fetch("hf://me/model")


# With a server. The library reads its environment when it is imported, so each case is a process.

FETCH = """
import sys
from fasseg_jax.weights.remote import fetch
for name in sys.argv[1:]:
    try:
        print(fetch(name))
    except OSError as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def hub(model, tmp_path):
    with serve() as hub:
        files = {path.name: path.read_bytes() for path in (model[1] / "shared").iterdir()}
        hub.repositories["me/model"] = files | {"onnx/model.safetensors": b"another model", "README.md": b""}
        hub.repositories["me/gated"] = files
        hub.repositories["me/empty"] = {"README.md": b"nothing"}
        hub.gated.add("me/gated")
        hub.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        yield hub


def python(hub, *arguments, **variables):
    run = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=hub.environment["HF_HOME"].removesuffix("/hf"),
        env=hub.environment | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


@pytest.mark.slow
def test_fetch_and_refusals(hub, model):
    names = ("hf://me/model", "hf://me/model@v1", "hf://me/model/config.json", "hf://me/absent", "hf://me/model@v2")
    names += ("hf://me/model/absent.pth", "hf://me/gated", "hf://me/empty")
    status, printed, errors = python(hub, "-c", FETCH, *names)
    assert status == 0, errors
    folder, tagged, file, absent, revision, no_file, gated, empty = printed.splitlines()
    assert folder == tagged
    assert_same_model(load_pretrained(folder), model[0])
    assert not os.path.exists(f"{folder}/onnx")  # of another program
    assert json.loads(Path(file).read_text())["model_type"] == "fasseg"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    assert absent == f"RemoteError: hf://me/absent: there is no such repository at {hub.url}, or it is private: {login}"
    assert revision == "RemoteError: hf://me/model@v2: there is no such revision"
    assert no_file == "RemoteError: hf://me/model/absent.pth: the repository has no such file"
    assert gated.startswith("RemoteError: hf://me/gated: its authors must grant access: ask for it at ")
    assert empty.startswith("RemoteError: hf://me/empty: the repository holds no weights at its top level; name a file")

    _, printed, _ = python(hub, "-c", FETCH, "hf://me/gated", HF_TOKEN="secret")
    assert os.path.isfile(f"{printed.strip()}/model.safetensors")
    _, printed, _ = python(hub, "-c", FETCH, "hf://me/model", "hf://me/other", HF_HUB_OFFLINE="1")
    cached, other = printed.splitlines()
    assert cached == folder
    assert other == "RemoteError: hf://me/other: is not in the cache, and HF_HUB_OFFLINE forbids to fetch it"
    unreachable = "http://127.0.0.1:9"
    _, printed, _ = python(hub, "-c", FETCH, "hf://me/model", "hf://me/other", HF_ENDPOINT=unreachable)
    cached, other = printed.splitlines()
    assert cached == folder and other.endswith(f"is not in the cache, and {unreachable} cannot be reached")


@pytest.mark.slow
def test_a_download_that_is_cut_goes_on(hub):
    content = np.random.default_rng(0).bytes(15_000_000)
    hub.repositories["me/large"] = {"model.safetensors": content}
    hub.cut_after, hub.cuts = 11_000_000, 1
    status, printed, errors = python(hub, "-c", FETCH, "hf://me/large")
    assert status == 0, errors
    assert Path(printed.strip(), "model.safetensors").read_bytes() == content
    assert any(begin > 0 for _, _, begin in hub.requests)


@pytest.mark.slow
def test_push_and_use(hub, model, tmp_path):
    checkpoint, folder = model
    (tmp_path / "evaluation").mkdir()
    names = ("mean_iou", "mean_boundary_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
    metrics = dict(zip(names, (0.5, None, 0.75, 0.625, 0.25), strict=True))
    facts = {"data": "data/<b>, validation", "images": "7", "inference": "single"}
    (tmp_path / "evaluation" / "metrics.json").write_text(json.dumps({"metrics": metrics, **facts}))
    push = ["-m", "fasseg_jax", "push", f"--checkpoint={folder / 'checkpoint'}", "--output=shared"]
    push += ["--evaluation=evaluation", "--license=mit"]
    status, printed, errors = python(hub, *push, "--repository=me/pushed")
    assert status == 1 and errors.startswith("fasseg push: hf://me/pushed: ") and "log in with" in errors, errors
    assert errors.count("\n") == 1
    status, printed, errors = python(hub, *push, "--repository=me/pushed", "--overwrite", HF_TOKEN="secret")
    assert status == 0, errors
    assert f"uploaded    {hub.url}/me/pushed" in printed
    files = hub.repositories["me/pushed"]
    assert {"README.md", "config.json", METADATA, "model.safetensors", "preprocessor_config.json"} <= files.keys()
    card = files["README.md"].decode()
    assert 'license: "mit"' in card and '"value": 50.0' in card and "| mIoU | 50.00 |" in card
    assert r"7 images (data/\<b\>, validation)" in card and "boundary" not in card
    assert "fasseg predict --checkpoint hf://me/pushed" in card and "0 road, 1 sidewalk" in card

    convert = ["-m", "fasseg_jax", "convert", "--weights=hf://me/pushed", "--output=converted"]
    status, printed, errors = python(hub, *convert)
    assert status == 0, errors
    assert printed.startswith("read        hf://me/pushed\n")
    assert_same_model(load_checkpoint(tmp_path / "converted"), checkpoint)
    for program, *arguments in (
        ("predict", "--input=x.png", "--output=x"),
        ("export", "--size=64x64", "--output=x.npz"),
    ):
        call = ["-m", "fasseg_jax", program, "--checkpoint=hf://me/absent", *arguments]
        (tmp_path / "x.png").touch()
        status, _, errors = python(hub, *call)
        assert status in (1, 2) and errors.count("\n") == 1 and "there is no such repository" in errors, errors
    for wrong, message in (
        (["--repository=pushed"], "give OWNER/NAME"),
        (["--evaluation=absent"], "absent/metrics.json: cannot be read"),
        (["--license=My own"], "give a license as the Hub names it"),
        ([], "the directory is not empty"),
    ):
        status, _, errors = python(hub, *push, *wrong)
        assert status == 2 and errors.count("\n") == 1 and message in errors, errors
