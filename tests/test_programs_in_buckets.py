"""The whole way with every path in a bucket: the same results as on a disk, also after a run was killed."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.export.load_exported import load
from fasseg_jax.runtime.files import copy_file, list_files, local_copy, make_path
from fasseg_jax.runtime.record_file import read_records
from fasseg_jax.weights.checkpoint import load_checkpoint
from tests.helpers import ROOT, error_lines
from tests.helpers.data_cases import write_folder
from tests.helpers.programs import run_all
from tests.helpers.training_runs import command, environment

pytestmark = pytest.mark.slow
STEPS = 6


def train_command(data, workdir) -> list[str]:
    """A training from prepared data."""
    line = command(workdir, data__source="tfds", train__steps=STEPS, train__checkpoint_every=2)
    return [f"configs/folder.py:{data}" if word == "configs/shapes.py" else word for word in line]


def succeed(command_lines: list[list[str]], **variables: str) -> list[str]:
    """Run programs; returns what they print."""
    outcomes = run_all(command_lines, environment(**variables))
    for status, output, errors in outcomes:
        assert status == 0 and "Traceback" not in errors, output + errors
    return [output for _, output, _ in outcomes]


def prepare(root, output) -> str:
    line = ["fasseg_jax.data.tfds", "--config", f"configs/folder.py:{root}", "--output", str(output)]
    return succeed([line])[0].rpartition("--config.data.root=")[2].strip()


def use(run, data, root, output) -> list[str]:
    """Evaluate, predict, export and convert; returns what the programs print."""
    checkpoint = ["--checkpoint", str(run)]
    return succeed(
        [
            ["eval.py", *checkpoint, "--output", f"{output}/evaluation", "--save_predictions", "--worst", "1"],
            ["predict.py", *checkpoint, "--input", f"{root}/images/validation", "--output", f"{output}/photos"],
            ["fasseg_jax.export", *checkpoint, "--size", "40x52", "--platform=cpu", "--output", f"{output}/model.npz"],
            ["convert.py", "--weights", f"{run}/checkpoints/{STEPS}", "--output", f"{output}/weights.safetensors"],
        ]
    )


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory) -> Path:
    """The folder with data/, prepared, run/ and results/ on a disk."""
    folder = tmp_path_factory.mktemp("on_disk")
    write_folder(folder / "data")
    (folder / "prepared").symlink_to(prepare(folder / "data", folder / "tfds"))
    subprocess.run(train_command(folder / "prepared", folder / "run"), cwd=ROOT, env=environment(), check=True)
    use(folder / "run", folder / "prepared", folder / "data", folder / "results")
    return folder


def test_all_programs(on_disk, emulator):
    folder = make_path(emulator.new_folder())
    for file in list_files(on_disk / "data"):
        copy_file(file, folder / "data" / file.relative_to(on_disk / "data").as_posix())
    data = prepare(folder / "data", folder / "prepared")
    assert data.startswith(f"{folder}/prepared/")

    # Train; killed after a checkpoint, and resumed.
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
    line = train_command(data, folder / "run")
    process = subprocess.Popen(line, cwd=ROOT, env=environment(**cache), stdout=subprocess.PIPE, text=True)
    for text in process.stdout:
        if text.startswith("step 5"):
            process.kill()
    process.wait()
    assert (folder / "cache").is_dir() and len(list_files(folder / "cache")) > 5
    resumed = subprocess.run(line, cwd=ROOT, env=environment(**cache), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Resuming after step" in resumed.stdout and f"{folder}/run/checkpoints/{STEPS}" in resumed.stdout
    theirs = metrics((on_disk / "run/metrics.jsonl").read_bytes())
    ours = metrics(read_records(folder / "run" / "metrics.jsonl"))
    assert ours == theirs and theirs.keys() == {*range(1, STEPS + 1)}
    names = [path.relative_to(folder / "run").as_posix() for path in list_files(folder / "run")]
    assert f"pictures/step_{STEPS:07}.png" in names and any(name.startswith("tensorboard/events") for name in names)
    assert not any(name.endswith(".lock") for name in names)

    # Everything else
    outputs = use(folder / "run", data, folder / "data", folder / "results")
    assert f"Results are in {folder}/results/evaluation" in outputs[0]
    for path in list_files(on_disk / "results"):
        assert (folder / "results" / path.relative_to(on_disk / "results").as_posix()).exists() or (
            "progress" in path.parts  # whose lines are in numbered objects
        )
    ours, theirs = (
        json.loads((results / "evaluation" / "metrics.json").read_text())
        for results in (folder / "results", on_disk / "results")
    )
    for name in theirs.keys() - {"checkpoint", "data"}:
        assert ours[name] == theirs[name], name
    for pattern in ("photos/*_labels.png", "evaluation/predictions/*.png"):
        files = sorted((on_disk / "results").glob(pattern))
        assert len(files) == 2
        for file in files:
            with (folder / "results" / file.relative_to(on_disk / "results").as_posix()).open("rb") as opened:
                np.testing.assert_array_equal(np.asarray(Image.open(opened)), np.asarray(Image.open(file)))
    photo = np.asarray(Image.open(on_disk / "data/images/validation/0.jpg"))
    with local_copy(folder / "results" / "model.npz") as model:
        np.testing.assert_array_equal(load(model)(photo), load(on_disk / "results/model.npz")(photo))
    weights = folder / "results" / "weights.safetensors"
    assert weights.read_bytes() == (on_disk / "results/weights.safetensors").read_bytes()

    # An evaluation that is complete resumes with all done; weights become a checkpoint, which starts a training.
    again = ["eval.py", "--checkpoint", f"{folder}/run", "--output", f"{folder}/results/evaluation", "--worst", "1"]
    recipe = next(word for word in line if word.startswith("configs/"))
    model = [word for word in line if word.startswith("--config.model")]
    convert = ["convert.py", "--config", recipe, *model, "--weights", str(weights), "--output", f"{folder}/converted"]
    outputs = succeed([[*again, "--save_predictions"], convert])
    assert "2 of them are done" in outputs[0]
    assert_same(load_checkpoint(f"{folder}/converted").variables, load_checkpoint(f"{folder}/run").variables)
    started = [*train_command(data, folder / "second"), f"--config.train.init={folder}/converted"]
    started = [word.replace(f"train.steps={STEPS}", "train.steps=1") for word in started]
    second = subprocess.run(started, cwd=ROOT, env=environment(**cache), capture_output=True, text=True, check=False)
    assert second.returncode == 0 and f"Starting from the model of {folder}/converted" in second.stdout, second.stderr


def metrics(lines: bytes) -> dict[int, dict[str, float]]:
    """The latest values of each step, without what the clock says."""
    clock = re.compile("time|goodput|.*second.*|images_per_s.*")
    values: dict[int, dict[str, float]] = {}
    for line in map(json.loads, lines.splitlines()):
        kept = {name: value for name, value in line.items() if not clock.fullmatch(name)}
        values.setdefault(line["step"], {}).update(kept)
    return values


def assert_same(ours, theirs):
    assert ours["params"].keys() == theirs["params"].keys()
    import jax

    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["train.py", "--workdir", "s3://bucket/run"], "s3://bucket/run: only local paths and buckets of Google"),
        (
            ["train.py", "--workdir", "gs://absent-bucket/run"],
            "cannot write gs://absent-bucket/run: there is no bucket",
        ),
        (["train.py", "--workdir", "WORK", "--config.train.init=hdfs://x/y"], "hdfs://x/y: only local paths"),
        (["eval.py", "--checkpoint", "gs://tests/absent"], "gs://tests/absent: no such checkpoint"),
        (["eval.py", "--checkpoint", "hdfs://x/y"], "hdfs://x/y: only local paths"),
        (["predict.py", "--checkpoint", "gs://tests/absent", "--input", "gs://tests/none", "--output", "WORK"], "none"),
        (["predict.py", "--checkpoint", "x", "--input", "x", "--output", "abfs://x/y"], "abfs://x/y: only local paths"),
        (["convert.py", "--weights", "gs://tests/absent.pth", "--output", "WORK"], "gs://tests/absent.pth"),
        (["fasseg_jax.export", "--checkpoint", "x", "--size=8x8", "--output", "s3://x/y.npz"], "s3://x/y.npz: only"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_one_line(emulator, tmp_path, line, message):
    line = [str(tmp_path / "new") if word == "WORK" else word for word in line]
    ((status, output, errors),) = run_all([line], environment(**emulator.environment))
    assert status in (1, 2) and message in errors, output + errors
    assert len(error_lines(errors)) == 1 and not list(tmp_path.iterdir())
