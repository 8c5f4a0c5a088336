"""How many training photos there are, and how large: what `configs/folder.py` sizes a training by."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.samples import Source
from fasseg_jax.data.sources.registry import find_source
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["TrainingSize", "training_size"]

LOOKED_AT = 12  # photos whose sizes are read
SOURCES = ("folder", "tfds")  # how a folder of your own data may be stored


@dataclasses.dataclass(frozen=True)
class TrainingSize:
    """The size of a training split.

    Attributes:
      photos: their number.
      height, width: of a photo in pixels, the medians of a few photos spread over the split; 0 if none can be read.
    """

    photos: int
    height: int = 0
    width: int = 0


def training_size(data: ConfigDict) -> TrainingSize | None:
    """Measure the training split of the folder `data.root`; None if it cannot be opened, and training will say why.

    Args:
      data: `config.data`; the folder may be stored in either of the `SOURCES`.
    """
    for source in SOURCES:
        try:
            # The command line may still set how labels are read. A sample can be read in at least one of two ways.
            readers = [
                find_source(ConfigDict({**data, "source": source, "reduce_zero_label": zero}), "training")
                for zero in (False, True)
            ]
        except (DataError, OSError):
            continue
        if len(readers[0]):
            return _measure(readers)
    return None


def _measure(readers: list[Source]) -> TrainingSize:
    def size(index: int) -> tuple[int, int] | None:
        for reader in readers:
            try:
                height, width = reader[index].labels.shape
                return height, width
            except DataError:
                continue
        return None

    length = len(readers[0])
    indices = np.unique(np.linspace(0, length - 1, LOOKED_AT).round().astype(int)).tolist()
    sizes = [found for _, found in map_ahead(size, indices) if found is not None]
    height, width = np.median(sizes, axis=0).astype(int).tolist() if sizes else (0, 0)
    return TrainingSize(length, height, width)
