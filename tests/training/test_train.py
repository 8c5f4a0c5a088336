"""train.py as users run it: devices, processes, interruptions, mistakes."""

import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from fasseg_jax import Segmenter
from fasseg_jax.weights.checkpoint import load_checkpoint
from tests.helpers.programs import run_all
from tests.helpers.training_runs import ROOT, command, environment, metrics, train

pytestmark = pytest.mark.slow


# The run that most tests compare with. It keeps averaged parameters as well, which must be resumed like the others.
RUN = {"train__steps": 12, "train__checkpoint_every": 3, "train__ema_decay": 0.5}

# The largest rates that the configuration allows.
DIVERGING = {
    "optimizer__learning_rate": 100,
    "optimizer__backbone_multiplier": 1e6,
    "train__steps": 8,
    "train__checkpoint_every": 1,
}


def start_hosts(commands):
    """Start a program on as many hosts as there are commands, each with one device."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    hosts = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands))}
    return [
        subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=environment(1, **hosts, JAX_PROCESS_ID=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, arguments in enumerate(commands)
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 12 steps on one device, a checkpoint every third."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(workdir, **RUN)
    return workdir


@pytest.fixture(scope="module")
def seconds(undisturbed, tmp_path_factory):
    """How long such a run takes once everything is compiled."""
    begin = time.perf_counter()
    train(tmp_path_factory.mktemp("timed"), **RUN)
    return time.perf_counter() - begin


def assert_same_variables(one, other):
    ours, theirs = (load_checkpoint(path).variables for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def complete_checkpoints(workdir):
    return [path for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def test_a_run_leaves_what_it_says(undisturbed):
    assert [path.name for path in (undisturbed / "pictures").iterdir()] == ["step_0000012.png"]
    assert sorted(int(path.name) for path in complete_checkpoints(undisturbed)) == [9, 12]
    losses = metrics(undisturbed)
    assert sorted(losses) == list(range(1, 13))
    assert losses[12] < losses[1]
    assert list((undisturbed / "tensorboard").iterdir())
    Image.open(undisturbed / "curves.png").verify()
    segmenter = Segmenter.from_checkpoint(undisturbed / "checkpoints" / "12")
    assert segmenter.classes.names[0] == "background"
    assert segmenter(np.zeros((50, 70, 3), np.uint8)).labels.shape == (50, 70)


def test_two_processes_go_on_where_one_was_and_agree_with_it(tmp_path):
    """With four decoder layers: HRCA is the last. test_layouts.py compares layouts of the devices of one process.

    Only two steps are compared: rounding differs between layouts, and sooner or later it moves a sample across the
    border between two pixels, where the gradient jumps.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    fields = {"train__steps": 4, "train__checkpoint_every": 2, "model__decoder__num_layers": 4}
    train(one, **fields)
    shutil.copytree(one, two)
    shutil.rmtree(two / "checkpoints" / "4")
    (two / "metrics.jsonl").unlink()
    hosts = start_hosts([command(two, **fields)] * 2)
    errors = [process.communicate(timeout=600)[1] for process in hosts]
    assert [process.returncode for process in hosts] == [0, 0], errors
    expected, losses = metrics(one), metrics(two)
    assert sorted(losses) == [3, 4]
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5)


def test_killed_runs_resume_bit_for_bit(undisturbed, seconds, tmp_path, request):
    """SIGKILL at random moments, --kills times. A run that ends before its kill is compared, and another one begins."""
    rng = random.Random(0)
    arguments = command(tmp_path, **RUN)
    kills = 0
    while kills < request.config.getoption("--kills"):
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=rng.uniform(0.3, 1.0) * seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            for path in complete_checkpoints(tmp_path):
                load_checkpoint(path)
        else:
            assert_same_variables(tmp_path / "checkpoints" / "12", undisturbed / "checkpoints" / "12")
            shutil.rmtree(tmp_path)
    train(tmp_path, **RUN)
    assert_same_variables(tmp_path / "checkpoints" / "12", undisturbed / "checkpoints" / "12")


def test_a_frozen_backbone_is_resumed(undisturbed, tmp_path):
    """On two devices that share parameters and state. The backbone stays that of the start weights."""
    fields = {"train__steps": 4, "train__checkpoint_every": 2, "optimizer__backbone_multiplier": 0.0}
    process = train(tmp_path / "run", status=2, **fields)
    assert "config.train.init = '': a frozen backbone needs start weights" in process.stderr
    fields |= {"train__init": undisturbed / "checkpoints" / "12", "train__ema_decay": 0.5}
    train(tmp_path / "run", devices=2, train__shard_parameters=True, **fields)
    shutil.move(tmp_path / "run" / "checkpoints" / "4", tmp_path / "undisturbed")
    train(tmp_path / "run", devices=2, train__shard_parameters=True, **fields)
    assert_same_variables(tmp_path / "run" / "checkpoints" / "4", tmp_path / "undisturbed")
    before, after = (load_checkpoint(path).variables["params"] for path in (fields["train__init"], tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, after["backbone"], before["backbone"])
    assert not np.array_equal(*(tree["decoder"]["class_embed"]["kernel"] for tree in (before, after)))
    process = train(tmp_path / "run", status=2, **{**fields, "optimizer__backbone_multiplier": 0.1})
    assert "cannot freeze its backbone midway" in process.stderr


def test_a_folder_takes_one_training_and_sigterm_saves_it(undisturbed, tmp_path):
    """A second training ends with one line and leaves the first alone; SIGTERM saves that, and it says so."""
    fields = {**RUN, "train__checkpoint_every": 100}
    first = subprocess.Popen(
        command(tmp_path, **fields), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline().startswith("Starting from random weights")
    second = train(tmp_path, status=2, **fields)
    assert f"process {first.pid} on" in second.stderr and "trains in this folder" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    for line in first.stdout:
        if line.startswith("step 2"):
            first.send_signal(signal.SIGTERM)
            break
    rest = first.stdout.read()
    assert first.wait(timeout=300) == 75
    assert "The same command resumes the training" in rest
    again = train(tmp_path, **fields)
    assert "Resuming after step" in again.stdout
    assert sorted(metrics(tmp_path)) == list(range(1, 13))
    assert_same_variables(tmp_path / "checkpoints" / "12", undisturbed / "checkpoints" / "12")


def test_changed_configuration(undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    process = train(workdir, **RUN, optimizer__weight_decay=0.1, train__log_every=2)
    assert "Changed since step 12: config.optimizer.weight_decay was 0.05, is 0.1" in process.stdout
    assert "log_every" not in process.stdout
    process = train(workdir, status=2, **RUN, model__decoder__num_queries=8)
    assert "config.model.decoder.num_queries was 9, is 8" in process.stderr


def test_divergence_stops_and_keeps_what_was_good(tmp_path):
    process = train(tmp_path, status=1, **DIVERGING)
    assert "not finite" in process.stderr and "shapes/training/" in process.stderr
    kept = complete_checkpoints(tmp_path)
    assert kept
    for path in kept:
        for leaf in jax.tree.leaves(load_checkpoint(path).variables):
            assert np.isfinite(leaf).all()


def test_corrupt_checkpoint(undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    for file in (workdir / "checkpoints" / "12" / "training").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:100])
    process = train(workdir, status=1, **RUN)
    assert "checkpoints/12: cannot be read" in process.stderr
    assert "remove it to resume from step 9" in process.stderr
    shutil.rmtree(workdir / "checkpoints" / "12")
    train(workdir, **RUN)
    assert_same_variables(workdir / "checkpoints" / "12", undisturbed / "checkpoints" / "12")


@pytest.mark.parametrize(("kilobytes", "message"), [(0, "cannot write"), (150, "cannot write a checkpoint")])
def test_full_disk(undisturbed, tmp_path, kilobytes, message):
    """A limit on the size of files takes the place of a full disk. Libraries and their threads print nothing.

    `undisturbed` has compiled all that is compiled here: nothing is written in part to the cache of the other tests.
    """
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]
    process = subprocess.run(
        [*limited, *command(tmp_path / "run", **{**RUN, "train__checkpoint_every": 1})],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    lines = [line for line in process.stderr.splitlines() if "compiled programs are not kept" not in line]
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("train.py: ") and message in lines[0] and str(tmp_path / "run") in lines[0]


def test_mistakes(tmp_path):
    mistakes = [
        ({"train__batch_size": 6}, "config.train.batch_size = 6 must be a multiple of 4 devices"),
        ({"train__init": "absent"}, "absent: no such checkpoint"),
        ({"model__num_classes": 7}, "config.model.num_classes is 7, but the data have 6 classes"),
        ({"data__max_targets": 1}, "more than config.data.max_targets = 1"),
        ({"data__source": "folder", "data__root": "absent"}, "absent"),
    ]
    command_lines = [command(tmp_path / str(i), **fields)[1:] for i, (fields, _) in enumerate(mistakes)]
    results = run_all(command_lines, environment(devices=4))
    for (_, message), (status, _, errors) in zip(mistakes, results, strict=True):
        assert status == 2 and message in errors, errors
        assert len(errors.strip().splitlines()) == 1


def test_other_data_or_fewer_steps_than_done_are_refused(undisturbed, tmp_path):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    process = train(workdir, status=2, **RUN, data__shapes__training=41)
    assert "the training split had 40 samples, has 41" in process.stderr and "--changed_data" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    process = train(workdir, status=2, **{**RUN, "train__steps": 11})
    assert "config.train.steps = 11, but this run has done 12" in process.stderr


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"train__seed": 1}, "host 1 was started otherwise than host 0: config.train.seed is 1, on host 0 0"),
        ({"data__shapes__training": 41}, "training samples is 41, on host 0 40"),
        ({"model__num_classes": 7}, "config.model.num_classes is 7, but the data have 6 classes"),
    ],
)
def test_hosts_that_differ_end_before_they_compile(tmp_path, other, message):
    hosts = start_hosts([command(tmp_path), command(tmp_path, **other)])
    for host, process in enumerate(hosts):
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        lines = [line for line in errors.splitlines() if line.startswith("train.py: ")]
        assert len(lines) == 1 and message in lines[0], (host, errors)
        assert "Traceback" not in errors and "Compiling" not in output


STUCK = """
import sys, threading, time
import fasseg_jax.training.checkpoints as checkpoints
import fasseg_jax.training.loop as loop
from fasseg_jax.programs import commands, train

loop.PATIENCE = train.PATIENCE = 2
if sys.argv.pop(1) == "save":
    checkpoints.RunCheckpoints.close = lambda self: time.sleep(600)
else:
    threading.Thread(target=time.sleep, args=(600,)).start()
commands.run("train")
"""


@pytest.mark.parametrize("stuck", ["save", "thread"])
def test_a_training_with_an_error_ends_although_something_is_stuck(tmp_path, stuck):
    _, _, *arguments = command(tmp_path, **DIVERGING)
    process = subprocess.run(
        [sys.executable, "-c", STUCK, stuck, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 1
    assert "not finite" in process.stderr and "Traceback" not in process.stderr
