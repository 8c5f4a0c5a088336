"""What an evaluation during a training shows and logs."""

import json
import math
import types

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.evaluation.metrics import Counts
from fasseg_jax.training import evaluator
from fasseg_jax.training.metric_log import MetricLog


@pytest.mark.parametrize(
    ("confusion", "line", "shares"),
    [
        # IoU 6 / 9 and 3 / 6; 9 of 12 pixels are right.
        ([[6, 2], [1, 3]], "Step 7: mIoU 58.33, pixel accuracy 75.00 (percent)", (7 / 12, 0.75)),
        ([[10, 0], [989, 1]], "Step 7: mIoU 0.55, pixel accuracy 1.10 (percent)", ((10 / 999 + 1 / 990) / 2, 0.011)),
        ([[5, 0], [0, 5]], "Step 7: mIoU 100.00, pixel accuracy 100.00 (percent)", (1, 1)),
        ([[0, 0], [0, 0]], "Step 7: mIoU –, pixel accuracy – (percent)", (math.nan, math.nan)),
    ],
)
def test_people_read_percent_and_programs_read_shares(monkeypatch, tmp_path, capsys, confusion, line, shares):
    counts = Counts(np.array(confusion), np.zeros(2, int), np.zeros(2, int))
    monkeypatch.setattr(evaluator, "evaluate_source", lambda *_: counts)
    monkeypatch.setattr(evaluator, "Segmenter", lambda *_, **__: types.SimpleNamespace())
    monkeypatch.setattr(evaluator, "fetch_replicated", lambda variables, _: variables)
    monkeypatch.setattr(evaluator.Evaluator, "_draw", lambda *_: None)
    log = MetricLog(tmp_path, steps=10, first_step=0)
    source = types.SimpleNamespace(classes=None)
    mean_iou = evaluator.Evaluator(load_config("configs/shapes.py"), source, None, tmp_path, log)(
        types.SimpleNamespace(variables=dict), 7
    )
    log.close()
    assert line in capsys.readouterr().out.splitlines()
    logged = json.loads((tmp_path / "metrics.jsonl").read_text())
    np.testing.assert_allclose((logged["mean_iou"], logged["pixel_accuracy"]), shares)
    np.testing.assert_allclose(math.nan if mean_iou is None else mean_iou, shares[0])


def test_only_the_first_evaluation_announces_compilation(monkeypatch, tmp_path):
    """The later ones find their programs compiled."""
    made = []

    def make_segmenter(*_, **__):
        made.append(types.SimpleNamespace())
        return made[-1]

    monkeypatch.setattr(evaluator, "evaluate_source", lambda *_: Counts.zeros(2))
    monkeypatch.setattr(evaluator, "Segmenter", make_segmenter)
    monkeypatch.setattr(evaluator, "fetch_replicated", lambda variables, _: variables)
    monkeypatch.setattr(evaluator.Evaluator, "_draw", lambda *_: None)
    log = MetricLog(tmp_path, steps=10, first_step=0)
    evaluate = evaluator.Evaluator(
        load_config("configs/shapes.py"), types.SimpleNamespace(classes=None), None, tmp_path, log
    )
    for step in (3, 6):
        evaluate(types.SimpleNamespace(variables=dict), step)
    log.close()
    assert [segmenter.announce for segmenter in made] == [log.say, None]
