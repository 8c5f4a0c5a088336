"""A training in a bucket is killed again and again: no checkpoint is lost, damaged, or chosen when it is incomplete."""

import json
import random
import subprocess
import time
from collections import defaultdict

import jax
import numpy as np
import pytest

from fasseg_jax.runtime.files import make_path
from fasseg_jax.runtime.record_file import read_records
from fasseg_jax.weights.checkpoint import find_checkpoint, load_checkpoint
from fasseg_jax.weights.checkpoint_metadata import is_complete
from tests.helpers import ROOT
from tests.helpers.training_runs import command, environment

pytestmark = pytest.mark.slow
PATIENCE = 300  # seconds in which a training must start to write a checkpoint


def checkpoints(run) -> dict[int, bool]:
    """Whether the checkpoint of each step is complete."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return {int(path.name): is_complete(path) for path in found}


def wait_for_checkpoint(process: subprocess.Popen, run, after: int, complete: bool) -> int:
    """Wait until the training has made a checkpoint, or a part of one, of a step after that one; returns the step."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [step for step, whole in checkpoints(run).items() if step > after and whole == complete]
        if found:
            return max(found)
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_runs_in_a_bucket(bucket_folder, request):
    """SIGKILL, --kills times: by turns while a checkpoint is being written, and at a random moment."""
    rng = random.Random(0)
    run = make_path(bucket_folder) / "run"
    line = command(run, train__steps=9999, train__checkpoint_every=1, train__evaluate_every=9999)
    interrupted = latest = 0
    for kill in range(request.config.getoption("--kills")):
        process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
        with process.stdout:  # conftest.py ends the process if the test fails here
            printed = []
            for text in process.stdout:
                printed.append(text)
                if text.startswith("step "):
                    break
            if kill % 2:
                time.sleep(rng.uniform(0, 5))
            else:
                step = wait_for_checkpoint(process, run, latest, complete=True)
                wait_for_checkpoint(process, run, step, complete=False)
            process.kill()
            process.wait()
        if latest:
            assert f"Resuming after step {latest} of" in "".join(printed)
        states = checkpoints(run)
        complete = [step for step, whole in states.items() if whole]
        interrupted += len(states) > len(complete)
        for step in complete:
            variables = load_checkpoint(run / "checkpoints" / str(step)).variables
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
        for step in states.keys() - set(complete):
            with pytest.raises(ValueError, match="incomplete"):
                load_checkpoint(run / "checkpoints" / str(step))
        assert max(complete, default=0) >= latest
        latest = max(complete, default=0)
        if latest:
            assert find_checkpoint(run)[0] == run / "checkpoints" / str(latest)
    assert interrupted and latest
    print(f"{interrupted} kills left a checkpoint incomplete; the latest complete one is of step {latest}")
    losses = defaultdict(list)
    for values in map(json.loads, read_records(run / "metrics.jsonl").splitlines()):
        if "loss" in values:  # before a checkpoint there is also a line of the clock
            losses[values["step"]].append(values["loss"])
    assert losses.keys() >= set(range(1, latest + 1)) and any(len(repeated) > 1 for repeated in losses.values())
    for step, repeated in losses.items():
        assert len(set(repeated)) == 1, f"step {step} was repeated with other losses: {repeated}"
