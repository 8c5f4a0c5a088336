"""Evaluation and prediction on two hosts, from and to a bucket: one is killed, the other says so, and one
host does what is left. (tests/evaluation/test_eval.py compares the numbers of two hosts that end.)
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import load_classes
from fasseg_jax.runtime.files import list_files, make_path, write_atomically
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.helpers import error_lines
from tests.helpers.programs import run_all
from tests.helpers.tiny import photo, tiny_model
from tests.helpers.training_runs import environment
from tests.training.test_train import start_hosts

pytestmark = pytest.mark.slow
NUM_IMAGES = 40

# A program that uploads each record of its progress at once.
PROGRAM = """
import sys
from fasseg_jax.programs import commands
from fasseg_jax.runtime import buckets
buckets.UPLOAD_SECONDS = 0
name = sys.argv.pop(1)
sys.argv[0] = f"{name}.py"
commands.run(name)
"""


@pytest.fixture
def folder(bucket_folder):
    """checkpoint/ and data/ in a bucket."""
    root = make_path(bucket_folder)
    config, variables = tiny_model()
    save_checkpoint(str(root / "checkpoint"), config, variables, load_classes("cityscapes"))
    rng = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        pictures = {"images": photo(64, 96, index), "annotations": rng.integers(0, 19, (64, 96), np.uint8)}
        for kind, picture in pictures.items():
            with write_atomically(root / "data" / kind / "validation" / f"{index:02}.png") as partial:
                Image.fromarray(picture).save(partial)
    return root


def evaluation(root, output) -> list[str]:
    fields = {"data.source": "folder", "data.root": root / "data", "train.lost_host_seconds": 10}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    config = ["--config", "configs/cityscapes.py:r50", *settings, "--config.inference.short_side=64"]
    return [*config, "--checkpoint", f"{root}/checkpoint", "--output", f"{root}/{output}", "--worst", "1"]


def prediction(root, output) -> list[str]:
    data = f"{root}/data/images/validation"
    return ["--checkpoint", f"{root}/checkpoint", "--input", data, "--output", f"{root}/{output}"]


def start(name: str, arguments: list[str]) -> list[subprocess.Popen]:
    return start_hosts([[sys.executable, "-c", PROGRAM, name, *arguments]] * 2)


def lose(hosts: list[subprocess.Popen], lost: int, progress) -> str:
    """Kill a host as soon as both have done an image; returns what the other one says, in one line."""
    deadline = time.monotonic() + 300
    while {path.name[:6] for path in progress.glob("host_*")} != {"host_0", "host_1"}:
        assert all(process.poll() is None for process in hosts), [process.communicate() for process in hosts]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    hosts[lost].kill()
    output, errors = hosts[1 - lost].communicate(timeout=120)
    assert hosts[1 - lost].returncode == 75, output + errors
    # Tensorstore says that this machine has no credentials of Google's.
    lines = [line for line in error_lines(errors) if "google_auth_provider" not in line]
    assert len(lines) == 1, errors
    return lines[0]


def numbers(path) -> dict:
    metrics = json.loads(path.read_text())
    return {name: value for name, value in metrics.items() if name not in ("checkpoint", "data")}


def labels(folder) -> dict:
    found = {}
    for path in list_files(folder):
        if path.name.endswith("_labels.png"):
            with path.open("rb") as file:
                found[path.name] = np.asarray(Image.open(file))
    return found


def test_evaluation_and_prediction_go_on_after_a_lost_host(folder):
    line = lose(start("eval", evaluation(folder, "evaluation")), 1, folder / "evaluation" / "progress")
    assert line.startswith("eval.py: host 1 of 2 is lost: no sign of life for 10 s")
    line = lose(start("predict", prediction(folder, "photos")), 0, folder / "photos" / ".progress")
    assert line.startswith("predict.py: host 0 of 2 is lost: its program has ended")

    runs = [
        ["eval.py", *evaluation(folder, "evaluation")],
        ["predict.py", *prediction(folder, "photos")],
        ["predict.py", *prediction(folder, "expected_photos")],
        ["eval.py", *evaluation(folder, "expected")],
    ]
    outcomes = run_all(runs, environment())
    assert [status for status, *_ in outcomes] == [0, 0, 0, 0], outcomes
    evaluated, resumed, whole, _ = (printed for _, printed, _ in outcomes)
    assert "of them are done (--restart" in evaluated
    done = int(resumed.partition(" of them are done.")[0].split()[-1])
    assert 2 <= done < NUM_IMAGES and f"Photos segmented: {NUM_IMAGES - done}," in resumed
    assert f"Photos segmented: {NUM_IMAGES}," in whole
    assert numbers(folder / "evaluation/metrics.json") == numbers(folder / "expected/metrics.json")
    ours, theirs = labels(folder / "photos"), labels(folder / "expected_photos")
    assert ours.keys() == theirs.keys() and len(ours) == NUM_IMAGES
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected)
    assert not any(".progress" in path.parts for path in list_files(folder / "photos"))
