"""Which checkpoints a run keeps, and which one it finds."""

import contextlib
import shutil
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data.classes import load_classes
from fasseg_jax.training.checkpoints import RunCheckpoints, barrier_of_healthy_hosts
from fasseg_jax.training.train_step import TrainState
from fasseg_jax.weights.checkpoint import find_checkpoint, load_checkpoint


def open_run(folder):
    samples = {"training": 40, "validation": 4}
    return RunCheckpoints(folder / "checkpoints", load_config("configs/shapes.py"), load_classes("shapes"), samples)


def save(run, *steps):
    state = TrainState(
        step=jnp.int32(1), params={"a": jnp.ones(3)}, batch_stats={}, opt_state={"m": jnp.zeros(3)}, ema_params=None
    )
    for step, mean_iou in steps:
        run.save(step, state, mean_iou)


def test_the_best_is_kept_and_found_also_after_an_interruption(tmp_path):
    run = open_run(tmp_path)
    assert run.best is None
    save(run, (1, None))
    assert run.best is None
    save(run, (2, 0.5), (3, None), (4, 0.3))
    assert run.best_step == 2
    run.close()
    run = open_run(tmp_path)
    assert run.best_step == 2 and run.best == (2, 0.5)
    save(run, (5, 0.4), (6, None), (7, None), (8, None))
    assert run.best_step == 2
    run.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "7", "8"]
    assert find_checkpoint(tmp_path) == (
        tmp_path / "checkpoints/2",
        " (the run's best, mIoU 50.00 during training)",
    )
    assert load_checkpoint(tmp_path).variables.keys() == {"params"}
    assert find_checkpoint(tmp_path / "checkpoints/7") == (tmp_path / "checkpoints/7", "")


def test_a_checkpoint_is_whole_or_gone_while_it_is_removed(tmp_path, monkeypatch):
    """A run that is killed while it deletes files must not leave a checkpoint that lacks them."""
    run = open_run(tmp_path)
    save(run, (1, None), (2, None))

    def killed(folder, **_):
        for variables in Path(folder).rglob("variables"):
            delete(variables)
            raise KeyboardInterrupt

    delete = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(run, (3, None), (4, None))
    monkeypatch.undo()
    steps = [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert sorted(path.name for path in steps) == ["2", "3"]
    for path in steps:
        np.testing.assert_array_equal(load_checkpoint(path).variables["params"]["a"], np.ones(3))
    open_run(tmp_path).close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_without_evaluation_the_latest(tmp_path):
    run = open_run(tmp_path)
    save(run, (9, None), (10, None))
    run.close()
    assert find_checkpoint(tmp_path)[0] == tmp_path / "checkpoints/10"


def test_a_run_without_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="this run has no checkpoint yet"):
        find_checkpoint(tmp_path)


def test_a_host_whose_write_failed_does_not_wait_for_the_others(monkeypatch):
    """scripts/host_faults.py tries a full disk on two hosts."""
    waits = []
    monkeypatch.setattr(ocp.multihost, "get_barrier_sync_fn", lambda: lambda **barrier: waits.append(barrier))
    meet = barrier_of_healthy_hosts()

    def finalize(key, error=None):  # as Orbax does
        with contextlib.suppress(OSError):
            try:
                if error:
                    raise error
            finally:
                meet(key=key, timeout_ms=1)

    for arguments in [("written",), ("failed", OSError("the disk is full"))]:
        thread = threading.Thread(target=finalize, args=arguments)
        thread.start()
        thread.join()
    finalize("of the main thread", OSError("handled elsewhere"))
    assert [barrier["key"] for barrier in waits] == ["written", "of the main thread"]
