"""The storage stops answering while a training runs: for a while, and for good."""

import json
import signal
import subprocess
import time

import pytest

from fasseg_jax.runtime.files import make_path
from fasseg_jax.runtime.record_file import read_records
from tests.helpers import ROOT, error_lines
from tests.helpers.bucket import Emulator
from tests.helpers.training_runs import command, environment, metrics, train

pytestmark = pytest.mark.slow
FIELDS = {"train__steps": 8, "train__checkpoint_every": 2}
PAUSE = 20  # seconds


# train.py that waits 20 s, not 300, for what is being written after an error
LESS_PATIENT = """
from fasseg_jax.programs import commands
from fasseg_jax.training import loop
loop.PATIENCE = 20
commands.run("train")
"""


def start(line: list[str], emulator: Emulator) -> subprocess.Popen:
    """Start a training; returns after its third step."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=ROOT, env=environment(**emulator.environment), **pipes)
    for text in process.stdout:
        if text.startswith("step 3"):
            break
    return process


def test_for_a_while(emulator, tmp_path):
    """The training waits, and ends as if nothing had been."""
    run = make_path(emulator.new_folder())
    process = start(command(run, **FIELDS), emulator)
    emulator.process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    try:
        time.sleep(PAUSE)
        assert process.poll() is None, "the training ended without its checkpoints"
    finally:
        emulator.process.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    print(f"The server was away for {PAUSE} s; the training ended {time.monotonic() - begin:.0f} s after that began")
    train(tmp_path, **FIELDS)
    lines = map(json.loads, read_records(run / "metrics.jsonl").splitlines())
    assert {line["step"]: line["loss"] for line in lines if "loss" in line} == metrics(tmp_path)
    assert (run / "checkpoints" / "8").is_dir()


def test_for_good():
    """One line says so, in bounded time."""
    emulator = Emulator()
    python, _, *arguments = command("gs://tests/run", train__steps=100_000, train__checkpoint_every=2)
    process = start([python, "-c", LESS_PATIENT, *arguments], emulator)
    emulator.stop()
    begin = time.monotonic()
    _, errors = process.communicate(timeout=240)
    print(f"The training ended {time.monotonic() - begin:.0f} s after the server had gone: {errors}")
    assert process.returncode == 1, errors
    # Tensorstore says that this machine has no credentials of Google's.
    (line,) = (line for line in error_lines(errors) if "google_auth_provider" not in line)
    assert "gs://tests/run" in line, errors
