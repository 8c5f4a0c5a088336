"""Evaluation during a training: mIoU, and pictures of predictions beside the ground truth."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.data import Source
from fasseg_jax.evaluation.evaluate import evaluate_source
from fasseg_jax.evaluation.metrics import metrics_of
from fasseg_jax.evaluation.tables import percent
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.distributed import fetch_replicated
from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.training.metric_log import MetricLog
from fasseg_jax.training.train_step import TrainState
from fasseg_jax.visualization.overlay import draw_comparison

__all__ = ["Evaluator"]

NUM_PICTURES = 4  # samples to draw, spread over the split, the same ones every time


class Evaluator:
    """Evaluates a state: logs the metrics, draws WORKDIR/pictures/step_STEP.png and returns the mean IoU.

    It predicts as predict.py does. All hosts must call it.
    """

    def __init__(self, config: ConfigDict, source: Source, mesh: Mesh, workdir: Path, log: MetricLog):
        """`source` is the validation split."""
        self._config, self._source, self._mesh, self._workdir, self._log = config, source, mesh, workdir, log
        self._announce: Callable[[str], None] | None = log.say

    def __call__(self, state: TrainState, step: int, progress: Callable[[], None] = lambda: None) -> float | None:
        """The mean IoU after `step` steps; None if all pixels of the split are ignored.

        `progress` is called after each sample.
        """
        variables = fetch_replicated(state.variables(), self._mesh)
        segmenter = Segmenter(self._config, variables, self._source.classes, devices=jax.local_devices())
        # Later evaluations find their programs compiled.
        segmenter.announce, self._announce = self._announce, None
        data, stride = self._config.data, self._config.train.evaluation_stride
        counts = evaluate_source(segmenter, self._source, data.ignore_label, stride, data.num_threads, progress)
        metrics = metrics_of(counts)
        self._log.numbers(step, {"mean_iou": metrics.mean_iou, "pixel_accuracy": metrics.pixel_accuracy})
        scores = f"mIoU {percent(metrics.mean_iou)}, pixel accuracy {percent(metrics.pixel_accuracy)}"
        self._log.say(f"Step {step}: {scores} (percent)")
        if jax.process_index() == 0:
            self._draw(segmenter, step)
        return None if np.isnan(metrics.mean_iou) else metrics.mean_iou

    def _draw(self, segmenter: Segmenter, step: int) -> None:
        indices = range(0, len(self._source), max(1, len(self._source) // NUM_PICTURES))[:NUM_PICTURES]
        samples = [self._source[index] for index in indices]
        labels = dict(segmenter.segment_all((number, sample.image) for number, sample in enumerate(samples)))
        rows = [(sample.image, sample.labels, labels[number]) for number, sample in enumerate(samples)]
        picture = draw_comparison(rows, self._source.classes)
        with write_atomically(self._workdir / "pictures" / f"step_{step:07d}.png") as partial:
            Image.fromarray(picture).save(partial)
        self._log.picture(step, "photo, truth, prediction", picture)
