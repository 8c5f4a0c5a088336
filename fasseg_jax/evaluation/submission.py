"""Predicted label maps as files, with class ids or with the ids of the data set's own label files.

Evaluation servers take the latter: those of ADE20K are 1 to 150 (0 is "other"), Cityscapes has 34 label ids.
"""

from pathlib import PurePath

import numpy as np
from jaxtyping import Integer
from PIL import Image

from fasseg_jax.data.folder_words import place_of, split_of
from fasseg_jax.data.labels import label_dtype
from fasseg_jax.runtime.files import Path, write_atomically

__all__ = ["result_name", "write_labels"]


def result_name(sample: str, root: str) -> str:
    """The path of a sample's results below their folder: SUBFOLDER/NAME.

    Sources name samples [`root`/]KIND/SPLIT/SUBFOLDER/NAME.EXTENSION, where KIND is "images" or the like. Of a folder
    with another order of these, or without them, what is left of the path is the name (see `place_of`).

    Args:
      sample: `Sample.name`.
      root: `config.data.root`.
    """
    path, folder = PurePath(sample), Path(root).expanduser()
    path = path.relative_to(folder) if root and path.is_relative_to(folder) else path
    if len(path.parts) > 2 and split_of(path.parts[1]):
        return PurePath(*path.parts[2:]).with_suffix("").as_posix()
    return place_of(Path(path)).name


def write_labels(path: Path, labels: Integer[np.ndarray, "H W"], ids: Integer[np.ndarray, "K"] | None = None) -> None:
    """Write a label map as a PNG of one channel: 8 bits if no id exceeds 255, else 16.

    Args:
      path: the file; its folder is made if absent.
      labels: class ids.
      ids: the id to write for each class, such as `Source.file_ids`; by default the class id.
    """
    if ids is not None:
        labels = ids.astype(label_dtype(ids.max()))[labels]
    with write_atomically(path) as partial:
        Image.fromarray(labels).save(partial)
