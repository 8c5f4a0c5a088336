"""The data that a configuration names."""

from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, DataError, check_num_classes, load_classes
from fasseg_jax.data.labels import label_table
from fasseg_jax.data.samples import Source
from fasseg_jax.data.sources.folder import FolderSource, folder_classes, pair_cityscapes, pair_folder
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.runtime.files import Path

__all__ = ["SPLITS", "data_classes", "find_source", "open_source"]

SPLITS = ("training", "validation")


def open_source(config: ConfigDict, split: str) -> Source:
    """Open a split to train on or to evaluate.

    Args:
      config: the whole configuration.
      split: "training" or "validation".

    Raises:
      DataError: the data are not there, a file has no partner, or `config.model.num_classes` is not their number of
        classes.
    """
    source = find_source(config.data, split)
    if source.problems:
        more = f", and {len(source.problems) - 1} more such problems" if len(source.problems) > 1 else ""
        raise DataError(f"{source.problems[0]}{more}; `train.py --check` lists all")
    check_num_classes(source.classes, config.model.num_classes)
    return source


def find_source(data: ConfigDict, split: str) -> Source:
    """Open a split, whatever its `problems` are.

    Args:
      data: `config.data`.
      split: "training" or "validation".

    Raises:
      DataError: the data are not there, or a field of `data` is wrong.
    """
    if split not in SPLITS:
        raise DataError(f"no split is called {split!r}; choose one of {', '.join(SPLITS)}")
    classes = data_classes(data)
    match data.source:
        case "shapes":
            if classes.names != load_classes("shapes").names:
                raise DataError('the source "shapes" needs config.data.dataset = "shapes"')
            return ShapesSource(split, data.shapes[split], data.shapes.size, classes, data.ignore_label)
        case "folder":
            table = label_table(len(classes), data.ignore_label, data.reduce_zero_label)
            return FolderSource(pair_folder(_root(data), split), classes, table)
        case "cityscapes":
            pairing, table = pair_cityscapes(_root(data), split, len(classes), data.ignore_label)
            return FolderSource(pairing, classes, table)
        case "tfds":
            from fasseg_jax.data.sources.array_record import PreparedSource  # takes seconds to import

            return PreparedSource(_root(data), split, classes, data.ignore_label)
    raise DataError(f"config.data.source = {data.source!r} is none of shapes, folder, cityscapes, tfds")


def data_classes(data: ConfigDict) -> ClassTable:
    """Names and colours of the classes: of the table that `data.dataset` names, else those in the folder `data.root`.

    Raises:
      DataError: the folder holds no class table, or `data.root` is empty.
      FileNotFoundError: there is no class table that `data.dataset` names.
    """
    if data.dataset:
        return load_classes(data.dataset)
    return folder_classes(_root(data))


def _root(data: ConfigDict) -> Path:
    if not data.root:
        raise DataError("config.data.root is empty: set --config.data.root=FOLDER, where the data are")
    return Path(data.root).expanduser()
