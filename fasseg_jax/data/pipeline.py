"""Batches for training: a function of the step, read ahead by threads."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.augmentation import augment
from fasseg_jax.data.classes import DataError
from fasseg_jax.data.preprocessing import SIZE_DIVISOR
from fasseg_jax.data.samples import Source

__all__ = ["Batch", "TrainingBatches", "read_ahead"]

SHUFFLING, AUGMENTING = 0, 1  # what a random generator is for; keeps their seeds apart


@dataclasses.dataclass(frozen=True)
class Batch:
    """One host's part of a training batch: b of the global batch's images.

    Attributes:
      images: (b, H, W, 3) uint8 RGB, not normalised; H and W are `config.augmentation.crop`.
      labels: (b, H, W) class ids, or the ignore label; uint8 or uint16.
      classes: (b, T) int32, the classes present in ascending order, then -1.
      index: (b,) int64, where the samples are in the source.
      names: of the b samples.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    index: np.ndarray
    names: tuple[str, ...]


class TrainingBatches:
    """The batches of all training steps, by step number: a sequence of `config.train.steps` of them.

    Each epoch visits every sample once, in an order of its own; a batch may hold the end of one and the beginning of
    the next. Order and augmentation depend on the seed and on the position in the global sequence of samples alone, so
    that a step has the same global batch on any number of hosts, of which host h of n makes the h-th block.
    """

    def __init__(self, source: Source, config: ConfigDict, seed: int, host: int = 0, num_hosts: int = 1):
        """See the class.

        Args:
          source: the training split.
          config: the whole configuration; its parts `train`, `augmentation` and `data` are used.
          seed: of order and augmentation.
          host: this host's number, from 0.
          num_hosts: of which there are so many.

        Raises:
          DataError: a field of the configuration does not fit.
        """
        if not len(source):
            raise DataError("the training split holds no samples")
        if config.train.batch_size % num_hosts:
            raise DataError(
                f"config.train.batch_size = {config.train.batch_size} cannot be shared by {num_hosts} hosts; "
                "choose a multiple of their number"
            )
        if any(side % SIZE_DIVISOR for side in config.augmentation.crop):
            raise DataError(f"config.augmentation.crop = {config.augmentation.crop}: needs multiples of {SIZE_DIVISOR}")
        self._source = source
        self._augmentation = config.augmentation
        self._ignore_label = config.data.ignore_label
        self._max_targets = min(config.data.max_targets, len(source.classes))
        self._steps = config.train.steps
        self._global_size = config.train.batch_size
        self._size = config.train.batch_size // num_hosts
        self._offset = host * self._size
        self._seed = seed

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step; raises a `DataError` that names the file."""
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of {self._steps}")
        first = step * self._global_size + self._offset
        images, labels, classes, index, names = zip(
            *[self._example(position) for position in range(first, first + self._size)], strict=True
        )
        return Batch(np.stack(images), np.stack(labels), np.stack(classes), np.array(index), names)

    def _example(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, str]:
        """The sample at a position in the global sequence, augmented."""
        epoch, place = divmod(position, len(self._source))
        index = int(_order(len(self._source), self._seed, epoch)[place])
        sample = self._source[index]
        rng = np.random.default_rng([self._seed, AUGMENTING, position])
        image, labels = augment(sample.image, sample.labels, self._augmentation, self._ignore_label, rng)
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=self._ignore_label)[: self._ignore_label])
        if len(present) > self._max_targets:
            raise DataError(
                f"{sample.name}: a crop holds {len(present)} classes, more than config.data.max_targets = "
                f"{self._max_targets}; raise it (`train.py --check` says how many images hold at most)"
            )
        classes = np.full(self._max_targets, -1, np.int32)
        classes[: len(present)] = present
        return image, labels, classes, index, sample.name


def read_ahead(batches: TrainingBatches, data: ConfigDict, first_step: int = 0) -> Iterator[Batch]:
    """Iterate over the batches from a step on, which threads prepare in advance.

    The iterator can be saved and restored by `grain.checkpoint`; as a batch depends on its step alone, a program that
    knows its step may as well begin a new one there.

    Args:
      batches: what to iterate over.
      data: `config.data`; its `num_threads` and `prefetch` are used, and change nothing else than the speed.
      first_step: the step of the first batch.
    """
    import grain  # slow to import, and needless for programs that only look up classes

    options = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.prefetch)
    return iter(grain.MapDataset.source(batches)[first_step:].to_iter_dataset(options))


@functools.lru_cache(maxsize=4)  # an epoch and the next, by several threads
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits the samples, (length,)."""
    return np.random.default_rng([seed, SHUFFLING, epoch]).permutation(length)
