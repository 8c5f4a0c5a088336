"""Training batches: each depends on the seed and its step only, and threads read them ahead."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import check_section
from fasseg_jax.data.augmentation import augment
from fasseg_jax.data.balance import epoch_length, epoch_with_repeats
from fasseg_jax.data.classes import DataError
from fasseg_jax.data.samples import Source

__all__ = ["Batch", "TrainingBatches", "read_ahead"]

SHUFFLING, AUGMENTING = 0, 1  # part of a generator's seed, so that its two uses are independent


@dataclasses.dataclass(frozen=True)
class Batch:
    """One host's part of a training batch: b of the global batch's images.

    Attributes:
      images: (b, H, W, 3) uint8 RGB, not normalized; H and W are `config.augmentation.crop`.
      labels: (b, H, W) class ids, or the ignore label; uint8 or uint16.
      classes: (b, T) int32, the classes present in ascending order, then -1.
      index: (b,) int64, the samples' indices in the source.
      names: of the b samples.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    index: np.ndarray
    names: tuple[str, ...]


class TrainingBatches:
    """The batches of all training steps: a sequence of `config.train.steps` batches, by step.

    Each epoch visits every sample once, or as often as its repeat factor says, in its own random order. A batch may
    hold the end of one epoch and the start of the next. Order and augmentation depend only on the seed and the position
    in the global sequence of samples. So a step has the same global batch on any number of hosts; of n hosts, host h
    makes its h-th block.
    """

    def __init__(
        self,
        source: Source,
        config: ConfigDict,
        seed: int,
        host: int = 0,
        num_hosts: int = 1,
        repeats: np.ndarray | None = None,
    ):
        """Check what the batches are made from; nothing is read yet.

        Args:
          source: the training split.
          config: the whole configuration; `train`, `augmentation` and `data` are used.
          seed: of order and augmentation.
          host: index of this host.
          num_hosts: number of hosts.
          repeats: of `repeat_factors`, the same on all hosts; None: an epoch visits every sample once.

        Raises:
          DataError: a field of the configuration does not fit the data.
          ConfigError: a field of `config.augmentation` has a value that is not allowed.
        """
        if not len(source):
            raise DataError("the training split holds no samples")
        if config.train.batch_size % num_hosts:
            raise DataError(
                f"config.train.batch_size = {config.train.batch_size} cannot be shared by {num_hosts} hosts: "
                "choose a multiple of their number"
            )
        check_section("augmentation", config.augmentation)
        self._source = source
        self._augmentation = config.augmentation
        self._ignore_label = config.data.ignore_label
        self._max_targets = min(config.data.max_targets, len(source.classes))
        self._steps = config.train.steps
        self._global_size = config.train.batch_size
        self._size = config.train.batch_size // num_hosts
        self._offset = host * self._size
        self._seed = seed
        self._epoch_length = len(source) if repeats is None else epoch_length(repeats)

        @functools.lru_cache(maxsize=4)  # threads may work on an epoch and the next
        def order(epoch: int) -> np.ndarray:
            rng = np.random.default_rng([seed, SHUFFLING, epoch])
            return rng.permutation(len(source)) if repeats is None else epoch_with_repeats(repeats, rng)

        self._order = order  # the indices of the samples in the order in which an epoch visits them

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step; a `DataError` that names the file if a sample cannot be read."""
        if not 0 <= step < self._steps:
            raise IndexError(f"step {step} of {self._steps}")
        first = step * self._global_size + self._offset
        images, labels, classes, index, names = zip(
            *[self._example(position) for position in range(first, first + self._size)], strict=True
        )
        return Batch(np.stack(images), np.stack(labels), np.stack(classes), np.array(index), names)

    def _example(self, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, str]:
        """The sample at a position in the global sequence, augmented."""
        epoch, position_in_epoch = divmod(position, self._epoch_length)
        index = int(self._order(epoch)[position_in_epoch])
        sample = self._source[index]
        rng = np.random.default_rng([self._seed, AUGMENTING, position])
        image, labels = augment(sample.image, sample.labels, self._augmentation, self._ignore_label, rng)
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=self._ignore_label)[: self._ignore_label])
        if len(present) > self._max_targets:
            raise DataError(
                f"{sample.name}: a crop holds {len(present)} classes, more than config.data.max_targets = "
                f"{self._max_targets}; raise it (`fasseg check` prints the largest number of classes in an image)"
            )
        classes = np.full(self._max_targets, -1, np.int32)
        classes[: len(present)] = present
        return image, labels, classes, index, sample.name


def read_ahead(batches: TrainingBatches, data: ConfigDict, first_step: int = 0) -> Iterator[Batch]:
    """Iterate over the batches from a step on, while threads prepare the next ones.

    `grain.checkpoint` can save and restore the iterator. Because a batch depends on its step only, a program that knows
    its step can also start a new iterator there.

    Args:
      batches: all batches.
      data: `config.data`; `num_threads` and `prefetch` are used, and affect only the speed.
      first_step: the step of the first batch.
    """
    import grain  # slow to import, and programs that only look up classes do not need it

    options = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.prefetch)
    return iter(grain.MapDataset.source(batches)[first_step:].to_iter_dataset(options))
