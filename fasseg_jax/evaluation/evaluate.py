"""Evaluation: samples read ahead -> labels -> counts, image by image; reading and counting run beside the network."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import jax
import numpy as np

from fasseg_jax.data import DataError, Sample, Source
from fasseg_jax.evaluation.metrics import Counts, count
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["ImageResult", "evaluate_source", "evaluate_images", "share_of_host", "sum_counts"]


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """What was counted in one image. Of the many counts few are not zero, and only these are kept.

    Attributes:
      index: of the sample in its source.
      name: of the sample.
      version: of the sample, see `Source.version`.
      positions: (n,) int64, where `Counts.to_vector()` is not zero.
      values: (n,) int64, its values there.
    """

    index: int
    name: str
    version: str
    positions: np.ndarray
    values: np.ndarray

    @classmethod
    def from_counts(cls, index: int, name: str, version: str, counts: Counts) -> Self:
        """The result of sample `index`."""
        vector = counts.to_vector()
        positions = np.flatnonzero(vector)
        return cls(index, name, version, positions, vector[positions])

    def counts(self, num_classes: int) -> Counts:
        """The counts, of K = `num_classes` classes."""
        return sum_counts([self], num_classes)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return vars(self) | {"positions": self.positions.tolist(), "values": self.values.tolist()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        arrays = {name: np.array(fields[name], np.int64) for name in ("positions", "values")}
        return cls(**{**fields, **arrays})


def sum_counts(results: Iterable[ImageResult], num_classes: int) -> Counts:
    """The counts of several images together; exact, whatever their order."""
    total = Counts.zeros(num_classes).to_vector()
    for result in results:
        total[result.positions] += result.values
    return Counts.from_vector(total)


def share_of_host(indices: Iterable[int]) -> list[int]:
    """Of `indices`, the same on all hosts, those that this host evaluates."""
    return list(indices)[jax.process_index() :: jax.process_count()]


def evaluate_source(
    segmenter: Segmenter, source: Source, ignore_label: int, stride: int = 1, num_threads: int = 1
) -> Counts:
    """Count, without boundaries, in every `stride`-th sample; each host takes its share, all get the result."""
    num_classes = len(source.classes)
    indices = share_of_host(range(0, len(source), stride))
    results = evaluate_images(segmenter, source, indices, ignore_label, num_threads=num_threads, boundary=False)
    vectors = all_gather_objects(sum_counts(results, num_classes).to_vector().tolist())
    return Counts.from_vector(np.sum(vectors, axis=0, dtype=np.int64))


def evaluate_images(
    segmenter: Segmenter,
    source: Source,
    indices: Iterable[int],
    ignore_label: int,
    *,
    batch_size: int = 1,
    num_threads: int = 1,
    boundary: bool = True,
    skip: Callable[[DataError], None] | None = None,
    save: Callable[[str, np.ndarray], None] | None = None,
) -> Iterator[ImageResult]:
    """Predict samples of this host and compare them with the truth.

    Args:
      segmenter: computes the labels.
      source: of the samples.
      indices: which samples.
      ignore_label: the truth's label of pixels that count for nothing.
      batch_size: photos for each device at once.
      num_threads: that read and count.
      boundary: count the pixels on boundaries too.
      skip: called, in the thread of the caller or of the segmenter, with what is wrong with a sample that cannot be
        read, and the others are evaluated; without it the error is raised.
      save: called in several threads, with a sample's name and its predicted labels, before its result is given.

    Yields:
      A result for each sample, in any order.

    Raises:
      DataError: a sample cannot be read; the message names its file.
      FloatingPointError: the network's output for a sample, which is named, is not finite.
    """
    samples = {}  # being predicted, by index; without their photos

    def photos() -> Iterator[tuple[_Key, np.ndarray]]:
        for index, sample, version in _read_ahead(source, indices, num_threads, skip):
            samples[index] = sample.labels, version
            yield _Key(index, sample.name), sample.image

    def examine(key: _Key, truth: np.ndarray, version: str, labels: np.ndarray) -> ImageResult:
        counts = count(truth, labels, len(source.classes), ignore_label, boundary, key.name)
        if save:
            save(key.name, labels)
        return ImageResult.from_counts(key.index, key.name, version, counts)

    predicted = ((key, *samples.pop(key.index), labels) for key, labels in segmenter.segment_all(photos(), batch_size))
    for _, result in map_ahead(lambda arguments: examine(*arguments), predicted, num_threads, eager=True):
        yield result


@dataclasses.dataclass(frozen=True)
class _Key:
    """Tells a sample from others; messages call it by its name."""

    index: int
    name: str

    def __str__(self) -> str:
        return self.name


def _read_ahead(
    source: Source, indices: Iterable[int], num_threads: int, skip: Callable[[DataError], None] | None
) -> Iterator[tuple[int, Sample, str]]:
    """Samples and their versions, in order; as many are read in advance as there are threads."""

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
