"""The data that a configuration names."""

from collections.abc import Callable

from ml_collections import ConfigDict

from fasseg_jax.config import check_section
from fasseg_jax.data.class_files import CLASS_FILES, class_file, folder_classes
from fasseg_jax.data.classes import ClassTable, DataError, check_num_classes, load_classes
from fasseg_jax.data.samples import SPLITS, Source
from fasseg_jax.data.sources.array_record import open_prepared
from fasseg_jax.data.sources.cityscapes import open_cityscapes
from fasseg_jax.data.sources.folder import data_root, find_splits, open_folder
from fasseg_jax.data.sources.shapes import open_shapes
from fasseg_jax.runtime.files import Path

__all__ = ["SOURCES", "data_classes", "describe_data", "find_source", "open_source"]

# `config.data.source` -> the function that opens a split, from `config.data`, the split and the classes. A new kind of
# source is a file with such a function, and a line here.
SOURCES: dict[str, Callable[[ConfigDict, str, ClassTable], Source]] = {
    "folder": open_folder,
    "cityscapes": open_cityscapes,
    "tfds": open_prepared,
    "shapes": open_shapes,
}


def open_source(config: ConfigDict, split: str) -> Source:
    """Open a split to train on or to evaluate.

    Args:
      config: the whole configuration.
      split: "training" or "validation".

    Raises:
      DataError: the data are not there, a file has no partner, or `config.model.num_classes` is not the number of their
        classes.
    """
    source = find_source(config.data, split)
    if source.problems:
        more = f", and {len(source.problems) - 1} more such problems" if len(source.problems) > 1 else ""
        raise DataError(f"{source.problems[0]}{more}; `fasseg check` lists all")
    check_num_classes(source.classes, config.model.num_classes)
    return source


def find_source(data: ConfigDict, split: str) -> Source:
    """Open a split, whatever its `problems` are.

    Args:
      data: `config.data`.
      split: "training" or "validation".

    Raises:
      DataError: the data are not there.
      ConfigError: a field of `data` has a value that is not allowed.
    """
    if split not in SPLITS:
        raise DataError(f"no split is called {split!r}; choose one of {', '.join(SPLITS)}")
    check_section("data", data)
    return SOURCES[data.source](data, split, data_classes(data))


def data_classes(data: ConfigDict) -> ClassTable:
    """Names and colors of the classes, from the table that `data.dataset` names, or else from the folder `data.root`.

    Raises:
      DataError: the folder holds no class table, or `data.root` is empty.
      FileNotFoundError: `data.dataset` names no class table.
      ValueError: the table is not a class table; the message names the line.
    """
    if data.dataset:
        return load_classes(data.dataset)
    return folder_classes(data_root(data), data.ignore_label, data.reduce_zero_label)


def describe_data(data: ConfigDict) -> list[str]:
    """What was found in a folder and decided about it, a line each; nothing for other sources.

    Args:
      data: `config.data`.

    Raises:
      DataError: see `find_source` and `data_classes`.
    """
    if data.source != "folder":
        return []
    lines = [find_splits(data).description]
    root = data_root(data)
    if not data.dataset and class_file(root) is None:
        count = len(data_classes(data))
        ids = f"class 0 to class {count - 1}" if count > 1 else "class 0"
        lines.append(
            f"{root} has no file of classes: the ids of its label maps are called {ids}. To name them, {_naming(root)}"
        )
    return lines


def _naming(root: Path) -> str:
    """What to do for names of classes."""
    below = [file for name in CLASS_FILES for file in sorted(root.glob(f"*/{name}"))]
    if below:
        return f"copy {below[0]} to {root}, or name the folder {below[0].parent}"
    return f"write names into {root / CLASS_FILES[1]}, one a line"
