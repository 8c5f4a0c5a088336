"""eval.py as users run it: devices, processes, interruptions, mistakes."""

import csv
import json
import math
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
from fasseg_jax.data.classes import load_classes
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.helpers import error_lines
from tests.helpers.programs import run_all
from tests.helpers.tiny import photo, tiny_model
from tests.helpers.training_runs import ROOT, environment

pytestmark = pytest.mark.slow  # every test starts processes

SIZES = [(70, 100), (100, 70)]  # (height, width)
NUM_IMAGES = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """checkpoint/, data/ and expected.json: (truth, prediction) of each image, the truth being half right."""
    root = tmp_path_factory.mktemp("evaluation")
    config, variables = tiny_model()
    save_checkpoint(root / "checkpoint", config, variables, load_classes("cityscapes"))
    segmenter = Segmenter(config, variables)
    maps = []
    for index in range(NUM_IMAGES):
        height, width = SIZES[index % len(SIZES)]
        image = photo(height, width, index)
        labels = segmenter(image).labels
        truth = np.roll(labels, 9, axis=1)
        truth[:3] = 255
        for kind, values in (("images", image), ("annotations", truth)):
            file = root / "data" / kind / "validation" / f"{'ab'[index % 2]}/{index:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
        maps.append((file.relative_to(root / "data/annotations/validation").with_suffix("").as_posix(), truth, labels))
    return root, maps


def arguments(root, output, *more):
    fields = {"data.source": "folder", "data.root": root / "data"}
    fields |= {"inference.short_side": 64, "inference.max_long_side": 128}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    config = "--config=configs/cityscapes.py:r50"
    return [config, *settings, f"--checkpoint={root / 'checkpoint'}", f"--output={output}", *map(str, more)]


def command(root, output, *more):
    return [sys.executable, "eval.py", *arguments(root, output, *more)]


def evaluate(root, output, *more, devices=1, status=0):
    process = subprocess.run(
        command(root, output, *more),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == status, process.stdout + process.stderr
    return process


def many(*command_lines):
    """(status, stdout, stderr) of each, all in one process."""
    return run_all([["eval.py", *command_line] for command_line in command_lines], environment())


def numbers(output):
    """The metrics as written, and the scores of the images."""
    return json.loads((output / "metrics.json").read_text())["metrics"], (output / "images.csv").read_text()


@pytest.fixture(scope="module")
def undisturbed(folder):
    root, _ = folder
    evaluate(root, root / "undisturbed", "--save_predictions")
    return root / "undisturbed"


def expected_confusion(pairs):
    confusion = np.zeros((19, 19), int)
    for truth, prediction in pairs:
        valid = truth != 255
        np.add.at(confusion, (truth[valid], prediction[valid]), 1)
    return confusion


def expected_iou(confusion):
    """Of the classes in the truth."""
    right, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    return (right / np.maximum(truth + predicted - right, 1))[truth > 0]


def test_numbers_are_those_of_counting_by_hand(folder, undisturbed):
    _, maps = folder
    metrics, lines = numbers(undisturbed)
    confusion = expected_confusion([pair for _, *pair in maps])
    iou = expected_iou(confusion)
    assert len(iou) > 5 and 0.2 < iou.mean() < 0.9  # or the test would mean nothing
    assert math.isclose(metrics["mean_iou"], iou.mean(), abs_tol=1e-9)
    assert math.isclose(metrics["pixel_accuracy"], np.diag(confusion).sum() / confusion.sum(), abs_tol=1e-9)

    images = {row["image"]: row for row in csv.DictReader(lines.splitlines())}
    assert sorted(images) == sorted(name for name, *_ in maps)
    for name, truth, prediction in maps:
        score = expected_iou(expected_confusion([(truth, prediction)])).mean()
        assert math.isclose(float(images[name]["score"]), score, abs_tol=1e-6)
        assert int(images[name]["labelled_pixels"]) == (truth != 255).sum()
        with Image.open(undisturbed / f"predictions/{name}.png") as saved:
            np.testing.assert_array_equal(np.asarray(saved), prediction)
    segmenter = Segmenter(*tiny_model())
    for index, (name, *_) in enumerate(maps[:2]):
        scores = segmenter(photo(*SIZES[index], index), scores=True).scores.astype(np.float64)
        uncertainty = (1 - np.square(scores / scores.sum(axis=-1, keepdims=True)).sum(axis=-1)).mean()
        assert math.isclose(float(images[name]["uncertainty"]), uncertainty, abs_tol=2e-6)

    assert {path.name for path in undisturbed.iterdir()} == {
        *("metrics.json", "per_class.csv", "images.csv", "confusion.png", "report.html"),
        *("worst", "predictions", "progress"),
    }
    by_score = sorted(maps, key=lambda item: float(images[item[0]]["score"]))
    pictures = sorted(path.name for path in (undisturbed / "worst").iterdir())
    assert len(pictures) == 10
    assert pictures[0] == f"001_{by_score[0][0].replace('/', '_')}.png"


def test_devices_batches_and_processes_agree(folder, undisturbed, tmp_path):
    root, _ = folder
    evaluate(root, tmp_path / "eight", "--save_predictions", "--batch_size=2", devices=8)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = []
    for number in range(2):
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(number)}
        processes.append(
            subprocess.Popen(
                command(root, tmp_path / "two", "--save_predictions"), cwd=ROOT, env=environment(1, **variables)
            )
        )
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    for run in ("eight", "two"):
        metrics, lines = numbers(tmp_path / run)
        expected, expected_lines = numbers(undisturbed)
        for name in ("mean_iou", "pixel_accuracy", "mean_boundary_iou"):
            assert math.isclose(metrics[name], expected[name], abs_tol=1e-6), run
        assert lines == expected_lines
    done = [len(file.read_text().splitlines()) for file in (tmp_path / "two/progress").glob("host_*.jsonl")]
    assert done == [NUM_IMAGES // 2] * 2


def done_images(output):
    return sum(file.read_bytes().count(b"\n") for file in output.glob("progress/host_*.jsonl"))


def test_killed_and_interrupted_runs_go_on(folder, undisturbed, tmp_path, request):
    """SIGKILL (--kills sets how often) after some images, then SIGTERM; the end is as if nothing had been."""
    root, _ = folder
    rng = random.Random(0)
    signals = [signal.SIGKILL] * request.config.getoption("--kills") + [signal.SIGTERM]
    before = 0
    for number in signals:
        target = before + rng.randrange(1, 4)
        process = subprocess.Popen(
            command(root, tmp_path, "--save_predictions"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        while done_images(tmp_path) < target and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == (75 if number == signal.SIGTERM else -number), output
        before = done_images(tmp_path)
        assert before < NUM_IMAGES
        if number == signal.SIGKILL and before > NUM_IMAGES // 2:  # too little left for many kills
            shutil.rmtree(tmp_path)
            before = 0
    assert f"Interrupted: {before} of {NUM_IMAGES} images are done. The same command resumes from there." in output
    with next(tmp_path.glob("progress/host_0.jsonl")).open("a") as file:
        file.write('{"index": 3, "na')  # as a kill in the midst of a line leaves it
    result = evaluate(root, tmp_path, "--save_predictions")
    assert f"{before} of them are done" in result.stdout
    assert done_images(tmp_path) == NUM_IMAGES
    assert numbers(tmp_path) == numbers(undisturbed)


def test_what_is_done_depends_on_what_is_evaluated(folder, undisturbed, tmp_path):
    root, _ = folder
    output = shutil.copytree(undisturbed, tmp_path / "out")
    first, other_size, other_files, restarted = many(
        arguments(root, output, "--save_predictions"),
        arguments(root, output, "--save_predictions", "--config.inference.short_side=96"),
        arguments(root, output),
        arguments(root, output, "--restart", "--worst=0"),
    )
    assert first[0] == 0 and f"{NUM_IMAGES} of them are done" in first[1]
    assert other_size[0] == 2
    assert (
        "holds another evaluation (config.inference.short_side was 64, is 96): give another --output" in other_size[2]
    )
    assert other_files[0] == 2 and "(predictions was class ids, is none)" in other_files[2]
    assert restarted[0] == 0 and "of them are done" not in restarted[1]
    assert numbers(output) == numbers(undisturbed)


def test_own_configuration_best_of_a_run_and_submission(folder, undisturbed, tmp_path):
    """Without --config; of three steps the second is the best. Predictions are in the data set's numbers."""
    root, maps = folder
    config, variables = tiny_model()
    config = config.copy_and_resolve_references()
    config.data.update(source="folder", root=str(root / "data"), reduce_zero_label=False)
    run = tmp_path / "run"
    for step, mean_iou in ((100, 0.25), (90, 0.5), (20, None)):
        save_checkpoint(run / f"checkpoints/{step}", config, variables, load_classes("cityscapes"))
        if mean_iou is not None:
            (run / f"checkpoints/{step}/metrics").mkdir()
            (run / f"checkpoints/{step}/metrics/metrics").write_text(json.dumps({"mean_iou": mean_iou}))
    saving = ["--save_predictions", "--submission", "--worst=0"]
    ((status, output, _),) = many([f"--checkpoint={run}", f"--output={tmp_path / 'out'}", *saving])
    assert status == 0
    assert f"Checkpoint: {run}/checkpoints/90 (the run's best, mIoU 50.00 during training)" in output
    assert numbers(tmp_path / "out")[0]["mean_iou"] == numbers(undisturbed)[0]["mean_iou"]
    label_ids = np.array([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33])  # Cityscapes'
    for name, _, prediction in maps:
        with Image.open(tmp_path / f"out/predictions/{name}.png") as saved:
            np.testing.assert_array_equal(np.asarray(saved), label_ids[prediction])


def test_unreadable_images(folder, undisturbed, tmp_path):
    """Damaged, of another size, with unknown ids, without a label map: an error, or left out if asked for."""
    root, maps = folder
    shutil.copytree(root / "data", tmp_path / "data")
    (tmp_path / "checkpoint").symlink_to(root / "checkpoint")
    wrong = {maps[index][0]: index for index in (4, 9, 14)}
    damaged, small, unknown = wrong
    (tmp_path / f"data/images/validation/{damaged}.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(tmp_path / f"data/annotations/validation/{small}.png")
    truth = maps[wrong[unknown]][1].copy()
    truth[9, 9] = 77
    Image.fromarray(truth).save(tmp_path / f"data/annotations/validation/{unknown}.png")

    ((status, _, errors),) = many(arguments(tmp_path, tmp_path / "out"))
    assert status == 2 and len(error_lines(errors)) == 1
    assert any(f"{name}.png" in errors for name in wrong)
    assert "--skip_unreadable skips such images" in errors

    missing = maps[0][0]
    (tmp_path / f"data/annotations/validation/{missing}.png").unlink()
    stopped, left_out = many(
        arguments(tmp_path, tmp_path / "out"), arguments(tmp_path, tmp_path / "out", "--skip_unreadable")
    )
    assert stopped[0] == 2 and f"{missing}.png has no label map" in stopped[2]
    status, _, errors = left_out
    assert status == 1
    assert "Compiling the network for " in errors
    assert len(error_lines(errors)) == 5 and errors.endswith("4 images were skipped\n")
    assert f"skipped {tmp_path}/data/images/validation/{missing}.png has no label map" in errors
    assert f"{damaged}.png: cannot be read as a picture" in errors
    assert f"{small}.png is 70x100 pixels, its label map" in errors and "6x5: they must" in errors
    assert f"{unknown}.png: holds the id 77, but only" in errors
    metrics, lines = numbers(tmp_path / "out")
    assert len(json.loads((tmp_path / "out/metrics.json").read_text())["skipped"]) == 4
    assert len(lines.splitlines()) == 1 + NUM_IMAGES - 4
    pairs = [pair for name, *pair in maps if name not in {*wrong, missing}]
    assert math.isclose(metrics["mean_iou"], expected_iou(expected_confusion(pairs)).mean(), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("kilobytes", "file"),
    [
        (0, "progress/evaluation.json"),
        (8, "confusion.png"),
        (100, "report.html"),
    ],
)
def test_a_full_disk_ends_with_one_line(folder, undisturbed, tmp_path, kilobytes, file):
    """A limit on the size of files takes the place of a full disk. All images are done, and remain so."""
    shutil.copytree(undisturbed / "progress", tmp_path / "out/progress")
    before = (tmp_path / "out/progress/host_0.jsonl").read_bytes()
    process = subprocess.run(
        [
            "bash",
            "-c",
            f'ulimit -f {kilobytes} && exec "$@"',
            "bash",
            *command(folder[0], tmp_path / "out", "--save_predictions"),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 1, process.stderr
    *notes, line = error_lines(process.stderr)
    assert line == f"eval.py: cannot write {tmp_path}/out/{file}: File too large"
    assert all("compiled programs are not kept" in note for note in notes)
    assert (tmp_path / "out/progress/host_0.jsonl").read_bytes() == before


def test_mistakes_end_with_one_line(folder, tmp_path):
    root, _ = folder
    (tmp_path / "notes.txt").touch()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    config, variables = tiny_model()
    variables = jax.tree.map(np.copy, variables)
    variables["params"]["decoder"]["class_embed"]["bias"][0] = np.nan
    save_checkpoint(tmp_path / "nan", config, variables, load_classes("cityscapes"))
    save_checkpoint(tmp_path / "ade", config, variables, load_classes("ade20k"))
    save_checkpoint(tmp_path / "backbone", config, variables, load_classes("cityscapes"), contents="backbone")
    good = arguments(root, tmp_path / "out")
    mistakes = [  # arguments, status, what the error says
        ([], 2, "--checkpoint is needed"),
        ([*good, "photo.jpg"], 2, "unexpected argument 'photo.jpg'"),
        ([*good, "--submission"], 2, "add --save_predictions"),
        ([*good, f"--output={tmp_path / 'notes.txt'}"], 2, "notes.txt is a file"),
        ([*good, "--batch_size=0"], 2, "batch_size"),
        ([*good, "--checkpoint=absent"], 2, "absent: no such checkpoint"),
        ([*good, f"--checkpoint={tmp_path / 'run'}"], 2, "this run has no checkpoint yet"),
        ([*good, f"--checkpoint={tmp_path / 'notes.txt'}"], 2, "not a checkpoint directory"),
        ([*good, f"--checkpoint={tmp_path / 'backbone'}"], 2, "holds only a backbone"),
        ([*good, f"--checkpoint={tmp_path / 'ade'}"], 2, "class 0 is 'wall' in the checkpoint and 'road' in the data"),
        ([*good, "--config.data.root=absent"], 2, "there is no folder absent; check config.data.root"),
        ([*good, "--config.inference.mode=best"], 2, "config.inference.mode"),
        ([*good, f"--checkpoint={tmp_path / 'nan'}", "--restart"], 1, "not finite"),
    ]
    for (line, status, message), result in zip(mistakes, many(*(line for line, *_ in mistakes)), strict=True):
        assert result[0] == status, (line, result)
        assert message in result[2], (line, result)
        assert len(error_lines(result[2])) == 1, result[2]
