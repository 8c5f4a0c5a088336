"""Early stopping, compared with a plain count of the evaluations without improvement."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from fasseg_jax.data import open_source
from fasseg_jax.data.balance import class_weights, count_classes
from fasseg_jax.training.early_stopping import EarlyStopping
from fasseg_jax.weights.checkpoint import load_checkpoint
from tests.helpers.training_runs import metrics, train


def stop_by_counting(mean_ious, patience):
    """The number of evaluations after which a training stops; None: it goes on."""
    best, waited = -np.inf, 0
    for number, mean_iou in enumerate(mean_ious, 1):
        waited = 0 if mean_iou is not None and mean_iou > best else waited + 1
        best = best if mean_iou is None else max(best, mean_iou)
        if patience and waited == patience:
            return number
    return None


@pytest.mark.parametrize("patience", [0, 1, 2, 5])
@pytest.mark.parametrize("resumed_after", [0, 1, 4, 11])
def test_it_stops_where_counting_does_also_in_a_resumed_run(patience, resumed_after):
    rng = np.random.default_rng(patience)
    stopped = set()
    for _ in range(50):
        mean_ious = [None if rng.random() < 0.1 else round(rng.random(), 1) for _ in range(12)]
        expected = stop_by_counting(mean_ious, patience)
        stopping = EarlyStopping(ConfigDict({"patience": patience, "evaluate_every": 30}))
        for number, mean_iou in enumerate(mean_ious, 1):
            if number == resumed_after:  # all that a checkpoint keeps is the best evaluation
                best = (stopping.best_step, stopping.best) if stopping.best_step else None
                stopping = EarlyStopping(ConfigDict({"patience": patience, "evaluate_every": 30}), best)
            stopping.add(30 * number, mean_iou)
            assert stopping.exhausted(30 * number) == (expected == number)
            if stopping.exhausted(30 * number):
                break
        stopped.add(expected)
    assert (stopped == {None}) == (patience == 0)


@pytest.mark.slow
def test_a_run_ends_early_and_its_checkpoint_says_what_balanced_it(tmp_path):
    fields = {"train__steps": 12, "train__evaluate_every": 1, "train__patience": 2, "train__ema_decay": 0.9}
    fields |= {"data__repeat_below": 0.9, "loss__class_balance": 0.5, "augmentation__balanced_crops": 0.5}
    process = train(tmp_path, **fields)
    mean_ious = metrics(tmp_path, "mean_iou")
    expected = stop_by_counting(mean_ious.values(), 2)
    assert max(mean_ious) == (expected or 12)
    assert ("Ended early: in 2 evaluations" in process.stdout) == (expected is not None)

    config = load_checkpoint(tmp_path).config
    pixels = count_classes(open_source(config, "training"), config.data)
    assert config.loss.class_weights == class_weights(pixels, 0.5)
    with np.load(tmp_path / "class_pixels.npz") as file:
        np.testing.assert_array_equal(file["pixels"], pixels)

    again = train(tmp_path, **fields)  # trains no further
    assert "Changed" not in again.stdout and f"Resuming after step {expected or 12} of 12" in again.stdout
    assert metrics(tmp_path, "mean_iou") == mean_ious
