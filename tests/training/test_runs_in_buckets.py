"""What a run writes besides checkpoints: curves, and the batch size that a resumed run takes."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.runtime.files import make_path
from fasseg_jax.runtime.record_file import RecordFile
from fasseg_jax.training import curves
from fasseg_jax.training.batch_size import batch_size_of_run
from fasseg_jax.weights.checkpoint_metadata import load_metadata
from tests.training.test_checkpoints import open_run, save

STEPS = ({"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5, "mean_iou": 0.25}, {"step": 3, "loss": 2.0})


def log(workdir):
    """Log the metrics of a run, in several objects if it is in a bucket."""
    records = RecordFile(workdir / "metrics.jsonl")
    for values in STEPS:
        records.add(json.dumps(values).encode() + b"\n")
        records.flush()
    records.close()
    return workdir


def picture(path):
    with path.open("rb") as file:
        return np.asarray(Image.open(file))


def test_curves(tmp_path, bucket_folder):
    ours, theirs = log(make_path(bucket_folder) / "run"), log(tmp_path / "run")
    assert curves.read_metrics(ours / "metrics.jsonl") == curves.read_metrics(theirs / "metrics.jsonl")
    for run in (ours, theirs):
        curves.write_curves(run)
    np.testing.assert_array_equal(picture(ours / "curves.png"), picture(theirs / "curves.png"))
    curves.write_curves(ours.parent / "empty")
    np.testing.assert_array_equal(picture(ours.parent / "empty/curves.png"), curves.draw_curves({"empty": {}}))


@pytest.mark.parametrize(
    ("arguments", "output", "status", "message"),
    [
        (["{folder}/a"], None, 0, "The curves are in {folder}/a/curves.png."),
        (["{folder}/a", "{folder}/b"], "{folder}/both.png", 0, "The curves are in {folder}/both.png."),
        (["{folder}/absent"], None, 2, "{folder}/absent/metrics.jsonl: No such file or directory"),
        (["s3://bucket/a"], None, 2, "s3://bucket/a: only local paths"),
        (["{folder}/a"], "s3://bucket/a.png", 2, "s3://bucket/a.png: only local paths"),
    ],
)
def test_the_program_for_curves(bucket_folder, monkeypatch, capsys, arguments, output, status, message):
    for name in "ab":
        log(make_path(bucket_folder) / name)
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(output=output and output.format(folder=bucket_folder)))
    monkeypatch.setattr(curves, "flags", flags)
    assert curves.main(["curves", *(argument.format(folder=bucket_folder) for argument in arguments)]) == status
    printed = capsys.readouterr()
    assert message.format(folder=bucket_folder) in printed.out + printed.err
    assert (printed.out + printed.err).count("\n") == 1
    if not status:
        assert picture(make_path(message.format(folder=bucket_folder).split(" in ")[1].removesuffix("."))).ndim == 3


def test_the_batch_size_is_that_of_the_latest_complete_checkpoint(bucket_folder):
    folder = make_path(bucket_folder)
    assert batch_size_of_run(folder) is None
    run = open_run(folder)
    save(run, (1, None), (2, None))
    run.close()
    expected = load_metadata(folder / "checkpoints/1").config.train.batch_size
    for step, batch_size in ((2, expected), (1, None)):
        for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
            (folder / "checkpoints" / str(step) / name).unlink()
        assert batch_size_of_run(folder) == batch_size
