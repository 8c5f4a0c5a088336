"""What every source of data gives: samples, by index."""

import dataclasses
from typing import Literal, Protocol

import numpy as np

from fasseg_jax.data.classes import ClassTable

__all__ = ["SPLITS", "Orientation", "Sample", "Source"]

SPLITS = ("training", "validation")

# How labels lie on a photo: on what a viewer shows, on the stored pixels, or either, because both have the label map's
# size; "none" if the photo has no EXIF orientation, so that they are the same.
Orientation = Literal["none", "viewer", "stored", "either"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A photo with its label map.

    Attributes:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids 0 to K - 1, or the configuration's ignore label. uint8, or uint16 if the ignore label
        exceeds 255.
      name: names the sample in messages, usually the path of its photo.
      orientation: how the labels lie on the photo.
    """

    image: np.ndarray
    labels: np.ndarray
    name: str
    orientation: Orientation = "none"


class Source(Protocol):
    """The samples of one split, by index. Several threads may read at once.

    Attributes:
      classes: names and colors of the K classes.
      file_ids: (K,) integers, the id of each class in the data set's own label files. Submissions to an evaluation
        server are written in these ids.
      problems: what is wrong with the source as a whole, such as files without a partner, one line each.
      fingerprint: a text that changes with the names of the samples, and is the same on all machines.
    """

    classes: ClassTable
    file_ids: np.ndarray
    problems: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read sample `index`, 0 to `len(self) - 1`.

        Raises:
          DataError: the sample cannot be read; the message names its file.
        """
        ...

    def version(self, index: int) -> str:
        """A text that changes whenever sample `index` does, without reading it: names, sizes, times of its files."""
        ...
