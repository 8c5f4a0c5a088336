"""Learning curves: one curve also of a run that was resumed, and a picture whatever the metrics hold."""

import json
import math
import types

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.runtime.files import WriteError
from fasseg_jax.training import curves
from fasseg_jax.training.curves import draw_curves, read_metrics, write_curves
from fasseg_jax.training.metric_log import MetricLog
from tests.helpers.full_disk import limited_files


def write_lines(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )
    return folder


def loss(step, value):
    return {"step": step, "loss": value}


def test_a_resumed_run_has_one_curve(tmp_path):
    """Killed after step 5, resumed from step 2: what the first run logged of steps 3 to 5 does not count."""
    lines = [*(loss(step, step) for step in (1, 2)), {"step": 2, "mean_iou": 0.1}]
    lines += [*(loss(step, 99) for step in (3, 4, 5)), {"step": 5, "mean_iou": 0.9}]
    lines += [*(loss(step, step) for step in (3, 4)), {"step": 4, "mean_iou": 0.2}]
    expected = {"loss": {1: 1, 2: 2, 3: 3, 4: 4}, "mean_iou": {2: 0.1, 4: 0.2}}
    assert read_metrics(write_lines(tmp_path, *lines) / "metrics.jsonl") == expected


def test_lines_that_a_kill_cut_off_are_left_out(tmp_path):
    lines = [
        '{"step": 1, "loss": 3.0}',
        '{"step": 2, "lo',
        "[]",
        "null",
        '{"loss": 1}',
        '{"step": "x"}',
        '{"step": 3, "loss": 2}',
    ]
    assert read_metrics(write_lines(tmp_path, *lines) / "metrics.jsonl") == {"loss": {1: 3, 3: 2}}


def test_what_a_run_logs_is_read(tmp_path):
    log = MetricLog(tmp_path, steps=10, first_step=0)
    log.numbers(5, {"loss": 1.5, "learning_rate": math.inf})
    log.numbers(5, {"mean_iou": math.nan})
    log.close()
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert (
        metrics["loss"] == {5: 1.5} and math.isnan(metrics["mean_iou"][5]) and math.isnan(metrics["learning_rate"][5])
    )
    write_curves(tmp_path)
    assert Image.open(tmp_path / "curves.png").size == draw_curves({"a": metrics}).size


@pytest.mark.parametrize(
    "metrics", [{}, {"loss": {20: 3.0}}, {"mean_iou": {1: math.nan}}, {"mean_iou": {1: 0.1, 5: 0.2}}]
)
def test_any_metrics_can_be_drawn(metrics):
    for runs in ({"a": metrics}, {"a": metrics, "b": {"loss": {1: 1.0, 2: 3.0}}}):
        assert len(np.unique(np.asarray(draw_curves(runs)).reshape(-1, 3), axis=0)) > 3


def test_the_title_names_the_best_evaluation(monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "draw_charts", lambda charts, *_: drawn.extend(charts))
    draw_curves({"a": {"mean_iou": {10: 0.2, 20: 0.45678, 30: 0.4, 40: math.nan}}})
    assert "Evaluation, percent: best mIoU 45.68 after step 20" in [chart.title for chart in drawn]
    (line,) = [line for chart in drawn for line in chart.lines if line.name == "mIoU"]
    np.testing.assert_allclose(line.y, [20, 45.678, 40, math.nan])


def test_a_training_goes_on_without_its_metrics(tmp_path):
    write_curves(tmp_path)
    np.testing.assert_array_equal(Image.open(tmp_path / "curves.png"), draw_curves({"a": {}}))


def test_a_full_disk_is_named(tmp_path):
    write_lines(tmp_path, loss(1, 2))
    with limited_files(100), pytest.raises(WriteError, match=f"cannot write {tmp_path}/curves.png: File too large"):
        write_curves(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "output", "status", "message"),
    [
        (["{a}"], None, 0, "The curves are in {a}/curves.png."),
        (["{a}", "{b}"], "{a}/both.webp", 0, "The curves are in {a}/both.webp."),
        ([], None, 2, "name the folder of a run"),
        (["{a}", "{b}"], None, 2, "--output is needed"),
        (["{a}/absent"], None, 2, "{a}/absent/metrics.jsonl: No such file or directory"),
        (["{empty}"], None, 2, "{empty}/metrics.jsonl holds no metrics yet"),
        (["{a}"], "{a}/curves.what", 2, "--output {a}/curves.what: unknown file extension"),
        (["{a}"], "{a}/metrics.jsonl/curves.png", 1, "cannot write {a}/metrics.jsonl"),
    ],
)
def test_the_program(tmp_path, monkeypatch, capsys, arguments, output, status, message):
    folders = {name: write_lines(tmp_path / name, loss(1, 2), loss(2, 1)) for name in "ab"}
    folders["empty"] = write_lines(tmp_path / "empty")
    given = types.SimpleNamespace(output=output and output.format(**folders))
    monkeypatch.setattr(curves, "flags", types.SimpleNamespace(FLAGS=given))
    assert curves.main(["curves.py", *(argument.format(**folders) for argument in arguments)]) == status
    printed = capsys.readouterr()
    assert message.format(**folders) in printed.out + printed.err
    assert (printed.out + printed.err).count("\n") == 1
    if not status:
        Image.open(message.format(**folders).split(" in ")[1].removesuffix(".")).verify()
