"""Evaluation: the confusion matrix of a data set, and what follows from it (SPEC section 6)."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from fasseg_jax.data import Sample, Source
from fasseg_jax.inference import Segmenter

__all__ = ["Scores", "confusion_matrix", "evaluate", "predict_samples", "scores_of"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Measures of agreement, each from 0 to 1.

    Attributes:
      mean_iou: of the classes that the ground truth holds.
      pixel_accuracy: share of the pixels that are right.
      iou: (K,) of each class; NaN where neither truth nor prediction holds it.
    """

    mean_iou: float
    pixel_accuracy: float
    iou: np.ndarray


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int) -> np.ndarray:
    """Counts of pixels, (K, K) int64: rows true classes, columns predicted ones; ignored pixels left out."""
    valid = truth != ignore_label
    pairs = truth[valid].astype(np.int64) * num_classes + prediction[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores_of(confusion: np.ndarray) -> Scores:
    """The measures that follow from a confusion matrix: IoU = tp / (tp + fp + fn)."""
    correct = np.diag(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        iou = correct / (truth + predicted - correct)
    return Scores(
        mean_iou=float(iou[truth > 0].mean()) if truth.any() else float("nan"),
        pixel_accuracy=float(correct.sum() / max(truth.sum(), 1)),
        iou=iou,
    )


def predict_samples(segmenter: Segmenter, source: Source, indices: range) -> Iterator[tuple[Sample, np.ndarray]]:
    """Samples of a source with their predicted labels."""
    for index in indices:
        sample = source[index]
        yield sample, segmenter(sample.image).labels


def evaluate(segmenter: Segmenter, source: Source, ignore_label: int, stride: int = 1) -> Scores:
    """Scores of a model on every `stride`-th sample of a source; each host takes its share, all get the result."""
    host, num_hosts = jax.process_index(), jax.process_count()
    num_classes = len(source.classes)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for sample, labels in predict_samples(segmenter, source, range(host * stride, len(source), num_hosts * stride)):
        confusion += confusion_matrix(sample.labels, labels, num_classes, ignore_label)
    if num_hosts > 1:
        # As two halves: without 64-bit mode JAX would cut the counts to 32 bits.
        halves = np.stack([confusion >> 24, confusion & (2**24 - 1)]).astype(np.int32)
        halves = np.asarray(multihost_utils.process_allgather(halves)).sum(axis=0, dtype=np.int64)
        confusion = (halves[0] << 24) + halves[1]
    return scores_of(confusion)
