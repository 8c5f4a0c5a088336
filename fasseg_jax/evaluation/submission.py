"""Predicted label maps as files, in the classes' own numbers or in those of a data set's label files.

Evaluation servers take the latter: ADE20K's are 1 to 150 (0 is "other"), Cityscapes' 34 label ids.
"""

from pathlib import PurePath

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.data.labels import label_dtype
from fasseg_jax.data.sources.folder import cityscapes_label_ids
from fasseg_jax.runtime.files import Path

__all__ = ["result_name", "submission_ids", "write_labels"]


def submission_ids(data: ConfigDict, num_classes: int) -> np.ndarray:
    """The number of each of the K = `num_classes` classes in the label files of a data set: (K,) integers.

    Args:
      data: `config.data`.
      num_classes: K.
    """
    if data.dataset == "cityscapes":
        return np.array(cityscapes_label_ids())
    return np.arange(num_classes) + int(data.reduce_zero_label)


def result_name(sample: str, root: str) -> str:
    """What results of a sample are called below their folder: SUBFOLDER/NAME.

    Sources call samples [`root`/]KIND/SPLIT/SUBFOLDER/NAME.EXTENSION, KIND being "images" or the like.

    Args:
      sample: `Sample.name`.
      root: `config.data.root`.
    """
    path, folder = PurePath(sample), Path(root).expanduser()
    path = path.relative_to(folder) if root and path.is_relative_to(folder) else path
    return PurePath(*path.parts[2:]).with_suffix("").as_posix()


def write_labels(path: Path, labels: np.ndarray, ids: np.ndarray | None = None) -> None:
    """Write labels, (H, W) class ids, as a PNG of one channel, 8 bits if no id exceeds 255, else 16.

    Args:
      path: of the file; its folder is made if absent.
      labels: class ids.
      ids: (K,) the number to write for each class; by default its own.
    """
    if ids is not None:
        labels = ids.astype(label_dtype(ids.max()))[labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path)
