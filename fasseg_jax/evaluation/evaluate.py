"""Evaluation image by image: threads read samples ahead and count pixels while the network predicts."""

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import Int64

from fasseg_jax.data import DataError, Sample, Source
from fasseg_jax.evaluation.metrics import Counts, count
from fasseg_jax.inference.segmenter import Segmentation, Segmenter
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["ImageResult", "evaluate_source", "evaluate_images", "share_of_host", "sum_counts"]


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """The counts of one image. Most of its K² + 2K counts are zero, and are not stored.

    Attributes:
      index: of the sample in its source.
      name: of the sample.
      version: of the sample's files (see `Source.version`).
      positions: indices of the nonzero elements of `Counts.to_vector()`.
      values: these elements.
      uncertainty: see `Segmentation`; None if it was not measured, as in progress of versions that did not know it.
    """

    index: int
    name: str
    version: str
    positions: Int64[np.ndarray, "n"]
    values: Int64[np.ndarray, "n"]
    uncertainty: float | None = None

    @classmethod
    def from_counts(cls, index: int, name: str, version: str, counts: Counts, uncertainty: float | None = None) -> Self:
        """Store the counts of sample `index`."""
        vector = counts.to_vector()
        positions = np.flatnonzero(vector)
        return cls(index, name, version, positions, vector[positions], uncertainty)

    def counts(self, num_classes: int) -> Counts:
        """The counts, of `num_classes` classes."""
        return sum_counts([self], num_classes)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return vars(self) | {"positions": self.positions.tolist(), "values": self.values.tolist()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        arrays = {name: np.array(fields[name], np.int64) for name in ("positions", "values")}
        return cls(**{**fields, **arrays})


def sum_counts(results: Iterable[ImageResult], num_classes: int) -> Counts:
    """Add up the counts of several images; exact, in any order."""
    total = Counts.zeros(num_classes).to_vector()
    for result in results:
        total[result.positions] += result.values
    return Counts.from_vector(total)


def share_of_host(indices: Iterable[int]) -> list[int]:
    """Those of `indices`, the same on all hosts, that this host evaluates."""
    return list(indices)[jax.process_index() :: jax.process_count()]


def evaluate_source(
    segmenter: Segmenter,
    source: Source,
    ignore_label: int,
    stride: int = 1,
    num_threads: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Counts:
    """Evaluate a split while a model trains.

    Each host evaluates its part, and all hosts get the counts of the whole.

    Args:
      segmenter: the model.
      source: the samples.
      ignore_label: label of ignored pixels in the ground truth.
      stride: evaluate every n-th sample.
      num_threads: number of threads that read and count.
      progress: is called after each sample.

    Returns:
      The counts, without boundaries.
    """
    num_classes = len(source.classes)
    indices = share_of_host(range(0, len(source), stride))
    results = evaluate_images(segmenter, source, indices, ignore_label, num_threads=num_threads, details=False)

    def reported() -> Iterator[ImageResult]:
        for result in results:
            progress()
            yield result

    vectors = all_gather_objects(sum_counts(reported(), num_classes).to_vector().tolist())
    return Counts.from_vector(np.array(vectors, np.int64).sum(axis=0))


def evaluate_images(
    segmenter: Segmenter,
    source: Source,
    indices: Iterable[int],
    ignore_label: int,
    *,
    batch_size: int = 1,
    num_threads: int = 1,
    details: bool = True,
    skip: Callable[[DataError], None] | None = None,
    save: Callable[[str, np.ndarray], None] | None = None,
) -> Generator[ImageResult, None, None]:
    """Predict samples on this host, and compare the predictions with the ground truth.

    Args:
      segmenter: the model.
      source: the samples.
      indices: which samples to evaluate.
      ignore_label: label of ignored pixels in the ground truth.
      batch_size: inputs of the network per device.
      num_threads: number of threads that read, and of threads that count.
      details: also count the pixels on boundaries, and measure the uncertainty.
      skip: called, in the caller's thread or the segmenter's, with the error of each sample that cannot be read.
        Without it the error is raised.
      save: called in several threads, with the name and the predicted labels of each sample before its result is
        yielded.

    Yields:
      A result for each sample, in any order.

    Raises:
      DataError: a sample cannot be read; the message names its file.
      FloatingPointError: the network's output is not finite; the message names the sample.
    """
    in_progress: dict[int, tuple[np.ndarray, str]] = {}  # ground truth and version of the samples that are predicted

    def photos() -> Iterator[tuple[_Key, np.ndarray]]:
        for index, sample, version in _read_samples(source, indices, num_threads, skip):
            in_progress[index] = sample.labels, version
            yield _Key(index, sample.name), sample.image

    def count_image(predicted: tuple[_Key, np.ndarray, str, Segmentation]) -> ImageResult:
        key, truth, version, result = predicted
        counts = count(truth, result.labels, len(source.classes), ignore_label, details, key.name)
        if save:
            save(key.name, result.labels)
        return ImageResult.from_counts(key.index, key.name, version, counts, result.uncertainty)

    predicted = (
        (key, *in_progress.pop(key.index), result)
        for key, result in segmenter.results(photos(), batch_size, uncertainty=details)
    )
    for _, result in map_ahead(count_image, predicted, num_threads, eager=True):
        yield result


@dataclasses.dataclass(frozen=True)
class _Key:
    """Identifies a sample; error messages print its name."""

    index: int
    name: str

    def __str__(self) -> str:
        return self.name


def _read_samples(
    source: Source, indices: Iterable[int], num_threads: int, skip: Callable[[DataError], None] | None
) -> Iterator[tuple[int, Sample, str]]:
    """Samples with their indices and versions, in order; threads read ahead."""

    def read(index: int) -> tuple[Sample, str] | DataError:
        try:
            version = source.version(index)  # before reading, so that the next run sees a change in between
            return source[index], version
        except DataError as error:
            return error

    for index, result in map_ahead(read, indices, num_threads):
        if not isinstance(result, DataError):
            yield index, *result
        elif skip:
            skip(result)
        else:
            raise result
