"""What every source of data gives: samples, by index."""

import dataclasses
from typing import Protocol

import numpy as np

from fasseg_jax.data.classes import ClassTable, DataError

__all__ = ["DataError", "Sample", "Source"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A photo with its label map.

    Attributes:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids 0 to K - 1, or the configuration's ignore label; uint8, or uint16 where the ignore
        label exceeds 255.
      name: what messages call it.
    """

    image: np.ndarray
    labels: np.ndarray
    name: str


class Source(Protocol):
    """Random access to the samples of one split. Several threads may read at once.

    Attributes:
      classes: names and colours of the K classes.
      problems: what is wrong with the source as a whole, such as files without a partner, one line each.
    """

    classes: ClassTable
    problems: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read sample `index`, 0 to `len(self) - 1`; raises a `DataError` that names its file."""
        ...

    def version(self, index: int) -> str:
        """A text that changes whenever sample `index` does, without reading it: names, sizes and times of its files."""
        ...
