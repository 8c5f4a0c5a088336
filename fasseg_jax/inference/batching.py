"""Photos of many sizes in batches of one shape each, made ready by threads while a device computes."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from fasseg_jax.inference.views import PhotoViews

__all__ = ["batches_of", "group_photos"]

Photo = TypeVar("Photo")

WAITING = 8  # groups' worth of photos that wait for others of their shape, at most


def group_photos(photos: Iterable[Photo], views_of: Callable[[Photo], PhotoViews], batch: int) -> Iterator[list[Photo]]:
    """Collect photos with the same padded shapes, until they fill a batch of `batch` inputs.

    Windows of one photo fill batches together, views of several sizes do not. If more than `WAITING * batch` photos
    wait, those that have waited longest go as they are; so do all at the end.
    """
    waiting: dict[Hashable, list[Photo]] = {}  # the longest waiting first
    num_waiting = 0
    for photo in photos:
        views = views_of(photo)
        group = waiting.setdefault(views.shapes, [])
        group.append(photo)
        num_waiting += 1
        if len(group) * views.num_windows >= batch:
            shapes = views.shapes
        elif num_waiting > WAITING * batch:
            shapes = next(iter(waiting))
        else:
            continue
        group = waiting.pop(shapes)
        num_waiting -= len(group)
        yield group
    yield from waiting.values()


def batches_of(shapes: Sequence[Hashable], group: Sequence[Photo], batch: int) -> Iterator[list[tuple[Photo, int]]]:
    """The inputs of a group as batches of at most `batch`, each of one shape: (photo, index of the view).

    View after view, so that the photos of a full group stay in their places, on their devices.
    """
    for _, indices in itertools.groupby(range(len(shapes)), key=lambda index: shapes[index]):
        inputs = [(photo, index) for index in indices for photo in group]
        for first in range(0, len(inputs), batch):
            yield inputs[first : first + batch]
