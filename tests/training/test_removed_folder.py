"""The folder of a run is removed while it trains: one line says so."""

import shutil
import subprocess

import pytest

from tests.helpers import ROOT
from tests.helpers.training_runs import command, environment

pytestmark = pytest.mark.slow


def test_a_run_whose_folder_is_removed_ends_with_one_line(tmp_path):
    run = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    line = command(run, train__steps=100_000, train__checkpoint_every=3)
    process = subprocess.Popen(line, cwd=ROOT, env=environment(), **pipes)
    for text in process.stdout:
        if text.startswith("step 1:"):
            shutil.rmtree(run)
            break
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors == f"train.py: cannot write {run}: the folder was removed while the training ran\n"
