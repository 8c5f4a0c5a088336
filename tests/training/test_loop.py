"""The parts of a training's loop that need no run; test_train.py runs the whole."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from fasseg_jax.config import load_config
from fasseg_jax.training.loop import Due, check_batch_size, due_after
from tests.helpers import ROOT

SETTINGS = ConfigDict({"steps": 100, "log_every": 5, "evaluate_every": 30, "checkpoint_every": 20})


@pytest.mark.parametrize(
    ("step", "stop", "due"),
    [
        (1, False, Due(log=False, evaluate=False, save=False)),
        (5, False, Due(log=True, evaluate=False, save=False)),
        (20, False, Due(log=True, evaluate=False, save=True)),
        (30, False, Due(log=True, evaluate=True, save=True)),  # the best checkpoint is one that was evaluated
        (31, True, Due(log=False, evaluate=False, save=True)),
        (100, False, Due(log=True, evaluate=True, save=True)),
    ],
)
def test_what_is_due_after_a_step(step, stop, due):
    assert due_after(step, SETTINGS, stop) == due


def test_everything_is_due_after_the_last_step():
    settings = ConfigDict({"steps": 7, "log_every": 100, "evaluate_every": 100, "checkpoint_every": 100})
    assert all(due_after(7, settings, stop=False))


def test_devices_and_parts_must_divide_the_batch():
    config = load_config("configs/shapes.py")  # of 8 images
    config.train.accumulation = 2
    check_batch_size(config, 4)
    with pytest.raises(ValueError, match=r"batch_size = 8 must be a multiple of 3 devices times .*accumulation = 2"):
        check_batch_size(config, 3)


@pytest.mark.slow
def test_importing_the_loop_defines_no_flags():
    code = "from absl import flags; before = set(flags.FLAGS); import fasseg_jax.training.loop; "
    code += "print(sorted({'config', 'workdir', 'check', 'profile'} & (set(flags.FLAGS) - before)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
