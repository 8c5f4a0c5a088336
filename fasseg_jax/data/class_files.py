"""The classes of a folder of your own: a file of names and perhaps colors, or the ids that label maps hold."""

import functools
import re
from collections import Counter
from typing import Any

import numpy as np
import yaml

from fasseg_jax.data.classes import (
    ClassTable,
    DataError,
    check_class_name,
    excerpt,
    is_number,
    load_classes,
    read_table_text,
)
from fasseg_jax.data.folder_layout import find_layout
from fasseg_jax.data.folder_splits import label_ids
from fasseg_jax.data.labels import decode_labels, read_file
from fasseg_jax.data.palette import choose_colors
from fasseg_jax.runtime.files import Path

__all__ = ["CLASS_FILES", "NoClassesError", "class_file", "folder_classes", "read_yaml", "yaml_names"]

CLASS_FILES = ("classes.csv", "classes.txt", "classes.yaml", "classes.yml", "data.yaml", "data.yml")
FULL_LINE = re.compile(r"\s*\d.*\s\d+\s+\d+\s+\d+\s*")  # like "id name R G B"
TABLE_LINE = re.compile(r",\s*\d+\s*(,|$)")
LONGEST_NAME = 200
MOST_SCANNED = 1000  # classes; more ids are those of objects, or of something else


class NoClassesError(DataError):
    """A folder has no file of classes, and its label maps hold no ids."""


def folder_classes(root: Path, ignore_label: int = 255, reduce_zero_label: bool = False) -> ClassTable:
    """Find the classes of your own data.

    The first of `CLASS_FILES` in the folder is read: `classes.csv` (see `load_classes`); `classes.txt`, whose lines are
    "id name R G B", "id name" or "name"; YAML with `names`, a list or a mapping of ids. Ids run from 0 without gaps
    (after `reduce_zero_label`), a name may hold spaces, and colors are 0 to 255. Classes without colors get colors that
    color-blind people can tell apart. Without such a file all label maps are read, and their ids are called "class 0",
    "class 1" and so on.

    Args:
      root: the folder.
      ignore_label: `config.data.ignore_label`.
      reduce_zero_label: `config.data.reduce_zero_label`.

    Raises:
      DataError: a line of the file is wrong, the message names it; or ids are too large to be those of classes.
      NoClassesError: no such file is there, and no label map holds ids.
      LayoutError: there is no such folder, or no label map is found in it.
    """
    file = class_file(root)
    if file is None:
        return _scan(root, ignore_label, reduce_zero_label)
    if file.suffix == ".csv":
        return load_classes(str(file))
    if file.suffix == ".txt":
        return _read_text(file)
    return _named(yaml_names(_mapping(file).get("names"), file))


def class_file(root: Path) -> Path | None:
    """The file of the classes; None if there is none."""
    for name in CLASS_FILES:
        file = root / name
        if file.exists() and (file.stem == "classes" or "names" in _mapping(file)):
            return file
    return None


def _mapping(file: Path) -> dict[str, Any]:
    content = read_yaml(file)
    return content if isinstance(content, dict) else {}


def _read_text(file: Path) -> ClassTable:
    lines = [(number, line) for number, line in enumerate(read_table_text(file).splitlines(), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: holds no classes")
    with_ids = _starts_with_number(lines[0][1])
    if any(FULL_LINE.fullmatch(line) for _, line in lines) or (with_ids and lines[0][1].split()[-1].isdecimal()):
        return _read_full_lines(file, lines)
    names: list[str] = []
    for number, line in lines:
        class_id, name = line.split(maxsplit=1) if with_ids and len(line.split()) > 1 else ("", line)
        if with_ids and class_id != str(len(names)):
            expected = f"'{len(names)} NAME' or '{len(names)} NAME R G B'"
            raise DataError(f"{file}, line {number}: expected {expected}, got {excerpt(line)}")
        names.append(" ".join(name.split()))
        check_class_name(names[-1], f"{file}, line {number}")
        if len(names[-1]) > LONGEST_NAME or TABLE_LINE.search(names[-1]):
            what = "is too long for a name" if len(names[-1]) > LONGEST_NAME else "is no name, but a row of a table"
            raise DataError(f"{file}, line {number}: {excerpt(names[-1])} {what}; write a name of a class in each line")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{file}: the class name {excerpt(repeated[0])} is there twice; each class has a line")
    return _named(tuple(names))


def _starts_with_number(line: str) -> bool:
    return line.split()[0].isdecimal()


def _read_full_lines(file: Path, lines: list[tuple[int, str]]) -> ClassTable:
    """Lines "id name R G B"."""
    names: list[str] = []
    palette: list[list[int]] = []
    for number, line in lines:
        class_id, *name, red, green, blue = line.split() if len(line.split()) >= 5 else ["", "", "", "", ""]
        color = [int(text) for text in (red, green, blue) if is_number(text, largest=255)]
        if class_id != str(len(names)) or len(color) != 3:
            expected = f"'{len(names)} NAME R G B' (0 to 255)"
            raise DataError(f"{file}, line {number}: expected {expected}, got {excerpt(line)}")
        names.append(" ".join(name))
        check_class_name(names[-1], f"{file}, line {number}")
        palette.append(color)
    return ClassTable(tuple(names), np.array(palette, np.uint8))


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
      DataError: it cannot be read.
    """
    text = read_table_text(file)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file}: is no YAML ({' '.join(str(error).split())[:200]}); correct it") from error


def yaml_names(names: Any, file: Path) -> tuple[str, ...]:
    """The class names of `names` in a YAML file: a list, or a mapping from the ids 0, 1, 2, ...

    Raises:
      DataError: it is something else.
    """
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise DataError(f"{file}: the ids of names must run from 0 without gaps")
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names must list the classes, as in 'names: [sky, road]'")
    for number, name in enumerate(names):
        if isinstance(name, list | dict) or name is None or not str(name).strip():
            raise DataError(f"{file}: name {number} is {excerpt(str(name))}, not the name of a class")
    return tuple(" ".join(str(name).split()) for name in names)


def _named(names: tuple[str, ...]) -> ClassTable:
    return ClassTable(names, choose_colors(names))


def _scan(root: Path, ignore_label: int, reduce_zero_label: bool) -> ClassTable:
    """The classes "class 0" to the largest id of any label map."""
    files = [pair.label_map for pair in find_layout(root).pairs]
    found: frozenset[int] = frozenset().union(*label_ids(files)) - {ignore_label, *({0} if reduce_zero_label else ())}
    if not found:
        try:
            decode_labels(read_file(files[0]), str(files[0]))
        except DataError as error:
            raise NoClassesError(
                f"{root} has no file of classes, and none of its label maps holds ids: {error}"
            ) from None
        raise NoClassesError(f"{root} has no file of classes, and all pixels of its label maps are ignored")
    count = max(found) + 1 - int(reduce_zero_label)
    if count > MOST_SCANNED:
        raise DataError(
            f"{root} has no file of classes, and ids in its label maps go up to {max(found)}, as those of objects do; "
            "write the names of the classes into classes.txt, one a line"
        )
    return _numbered(count)


@functools.lru_cache
def _numbered(count: int) -> ClassTable:
    return _named(tuple(f"class {index}" for index in range(count)))
