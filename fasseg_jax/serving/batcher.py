"""Segments the photos of many threads in a thread of its own, where photos of one shape share batches."""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future

import numpy as np
from jaxtyping import UInt, UInt8

from fasseg_jax.inference.segmenter import Segmenter

__all__ = ["Batcher"]

MEMORY = 0.8  # the part of the earlier mean that is kept with each batch


@dataclasses.dataclass(frozen=True, eq=False)  # each is another photo, whatever its pixels
class _Photo:
    """A photo that waits: the shapes of its views, and who is told its labels and the seconds that they took."""

    image: UInt8[np.ndarray, "H W 3"]
    shapes: Sequence[Hashable]
    answer: Future[tuple[np.ndarray, float]] = dataclasses.field(default_factory=Future)


class Batcher:
    """Segments photos, in the order of their arrival: `labels, seconds = batcher(image)`, from any thread.

    Photos that arrive while the device computes wait. Then the one that has waited longest goes, together with others
    of its shape: 2, 4, 8 and so on, because JAX compiles a program for each number. Nobody waits for others to arrive.
    Where batches save no time, as on CPUs, photos go one by one.

    Attributes:
      seconds_per_photo: a running mean.
    """

    def __init__(self, segmenter: Segmenter, batch_size: int, observe: Callable[[int, float], None]):
        """Start the thread.

        Args:
          segmenter: only this thread uses it from now on.
          batch_size: the largest number of photos in a batch.
          observe: is called with the number of photos and the seconds of each batch.
        """
        self.seconds_per_photo = 0.0
        self._segmenter = segmenter
        self._batch_size = batch_size if segmenter.batches_pay else 1
        self._observe = observe
        self._photos: list[_Photo] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._thread.start()

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[UInt[np.ndarray, "H W"], float]:
        """Segment a photo, and wait for it.

        Returns:
          The labels, and the seconds from the start of its batch to its labels.

        Raises:
          Exception: what the segmenter raises for this photo.
        """
        photo = _Photo(image, self._segmenter.padded_shapes(image))
        with self._changed:
            self._photos.append(photo)
            self._changed.notify()
        return photo.answer.result()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs, so that photos are segmented."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread when no photo waits any more."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while batch := self._next():
            start = time.perf_counter()
            self._segment(batch, start)
            seconds = time.perf_counter() - start
            before = self.seconds_per_photo or seconds / len(batch)
            self.seconds_per_photo = MEMORY * before + (1 - MEMORY) * seconds / len(batch)
            self._observe(len(batch), seconds)

    def _next(self) -> list[_Photo]:
        """The next batch, when there is one; empty when the batcher was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._photos or self._closed)
            alike = [photo for photo in self._photos if photo.shapes == self._photos[0].shapes]
            batch = alike[: _power_of_two(min(len(alike), self._batch_size))]
            self._photos = [photo for photo in self._photos if photo not in batch]
            return batch

    def _segment(self, batch: Sequence[_Photo], start: float) -> None:
        """Answer the photos of a batch. If one of them raises an error, compute each by itself."""
        alone = len(batch) == 1  # errors of photos in a batch begin with their number
        (_, views_alike), *_ = collections.Counter(batch[0].shapes).most_common(1)
        size = _power_of_two(min(len(batch) * views_alike, self._batch_size))
        try:
            photos = ((None if alone else index, photo.image) for index, photo in enumerate(batch))
            for index, labels in self._segmenter.segment_all(photos, size):
                batch[index or 0].answer.set_result((labels, time.perf_counter() - start))
        except Exception as error:
            if alone:
                batch[0].answer.set_exception(error)
                return
            for photo in batch:
                if not photo.answer.done():
                    self._segment([photo], start)


def _power_of_two(limit: int) -> int:
    """The largest power of two that is at most `limit`; 0 of 0."""
    return 1 << limit.bit_length() >> 1
