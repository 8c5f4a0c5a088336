"""What every source of data gives: samples, by index."""

import dataclasses
from typing import Protocol

import numpy as np

from fasseg_jax.data.classes import ClassTable

__all__ = ["SPLITS", "Sample", "Source"]

SPLITS = ("training", "validation")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A photo with its label map.

    Attributes:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids 0 to K - 1, or the configuration's ignore label. uint8, or uint16 if the ignore label
        exceeds 255.
      name: names the sample in messages, usually the path of its photo.
    """

    image: np.ndarray
    labels: np.ndarray
    name: str


class Source(Protocol):
    """The samples of one split, by index. Several threads may read at once.

    Attributes:
      classes: names and colors of the K classes.
      file_ids: (K,) integers, the id of each class in the data set's own label files. Submissions to an evaluation
        server are written in these ids.
      problems: what is wrong with the source as a whole, such as files without a partner, one line each.
    """

    classes: ClassTable
    file_ids: np.ndarray
    problems: tuple[str, ...]

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
