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


def start(workdir, emulator: Emulator, **fields) -> subprocess.Popen:
    """Start a training; returns after its third step."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command(workdir, **fields), cwd=ROOT, env=environment(**emulator.environment), **pipes)
    for text in process.stdout:
        if text.startswith("step 3"):
            break
    return process


def test_for_a_while(emulator, tmp_path):
    """The training waits, and ends as if nothing had been."""
    run = make_path(emulator.new_folder())
    process = start(run, emulator, **FIELDS)
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
    process = start("gs://tests/run", emulator, train__steps=100_000, train__checkpoint_every=2)
    emulator.stop()
    begin = time.monotonic()
    _, errors = process.communicate(timeout=580)
    print(f"The training ended {time.monotonic() - begin:.0f} s after the server had gone: {errors}")
    assert process.returncode == 1, errors
    # Tensorstore says that this machine has no credentials of Google's.
    (line,) = (line for line in error_lines(errors) if "google_auth_provider" not in line)
    assert line.startswith("train.py: ") and "gs://tests/run" in line, errors
