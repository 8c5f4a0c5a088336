"""Batches of one shape each, from photos of many sizes."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from fasseg_jax.inference.views import PhotoViews

__all__ = ["batches_of", "group_photos"]

Photo = TypeVar("Photo")

WAITING = 8  # how many batches' worth of photos wait for others of their shape, at most


def group_photos(photos: Iterable[Photo], views_of: Callable[[Photo], PhotoViews], batch: int) -> Iterator[list[Photo]]:
    """Collect photos of the same padded shapes until they fill a batch of `batch` inputs.

    The windows of one photo fill batches together; its views of several sizes do not. When more than `WAITING * batch`
    photos wait, the group that has waited longest goes although it fills no batch. At the end all groups go.
    """
    waiting: dict[Hashable, list[Photo]] = {}  # by the shapes of their views, the longest waiting first
    for photo in photos:
        views = views_of(photo)
        group = waiting.setdefault(views.shapes, [])
        group.append(photo)
        if len(group) * views.num_windows >= batch:
            yield waiting.pop(views.shapes)
        elif sum(map(len, waiting.values())) > WAITING * batch:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def batches_of(shapes: Sequence[Hashable], group: Sequence[Photo], batch: int) -> Iterator[list[tuple[Photo, int]]]:
    """Divide the inputs of a group into batches of at most `batch`, each of one shape.

    Args:
      shapes: padded shape of each view, the same for all photos of the group.
      group: the photos.
      batch: number of inputs.

    Yields:
      (photo, index of its view) for each input. View follows view, so that each photo of a full group keeps its
      position in the batch and with it its device.
    """
    for _, indices in itertools.groupby(range(len(shapes)), key=lambda index: shapes[index]):
        inputs = [(photo, index) for index in indices for photo in group]
        for first in range(0, len(inputs), batch):
            yield inputs[first : first + batch]
