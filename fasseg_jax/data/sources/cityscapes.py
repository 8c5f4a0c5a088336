"""Cityscapes, as it is unpacked."""

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.data.labels import UNKNOWN, label_table
from fasseg_jax.data.sources.folder import FolderSource, data_root, files_by_name, pair_files

__all__ = ["label_id_table", "open_cityscapes"]

FOLDERS = {"training": "train", "validation": "val"}
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
NUM_LABEL_IDS = 34


def open_cityscapes(data: ConfigDict, split: str, classes: ClassTable) -> FolderSource:
    """Open a split of the folder that holds leftImg8bit/ and gtFine/.

    leftImg8bit/train/CITY/NAME_leftImg8bit.png belongs to gtFine/train/CITY/NAME_gtFine_labelTrainIds.png, which
    cityscapesScripts writes. Without these files, NAME_gtFine_labelIds.png is read, and its ids are mapped by the
    column `label_id` of the class table "cityscapes".

    Args:
      data: `config.data`.
      split: "training" or "validation".
      classes: of the data.

    Raises:
      DataError: a folder is missing or holds no such files, or `data.ignore_label` is the id of a class.
    """
    root, folder = data_root(data), FOLDERS[split]
    photos, _ = files_by_name(root / "leftImg8bit" / folder, "_leftImg8bit.png")
    label_maps, ending = files_by_name(root / "gtFine" / folder, TRAIN_IDS, LABEL_IDS)
    label_ids = np.array(load_classes("cityscapes").label_ids)
    table = label_table(len(classes), data.ignore_label)
    if ending == LABEL_IDS:
        table = label_id_table(data.ignore_label)
    return FolderSource(pair_files(photos, label_maps), classes, table, label_ids, data.label_orientation)


def label_id_table(ignore_label: int) -> np.ndarray:
    """The training ids of Cityscapes' 34 label ids, and of 255, which stands for the -1 of license plates."""
    label_ids = np.array(load_classes("cityscapes").label_ids)
    table = np.full(65536, UNKNOWN, np.int32)
    table[[*range(NUM_LABEL_IDS), 255]] = ignore_label
    table[label_ids] = np.arange(len(label_ids))
    return table
