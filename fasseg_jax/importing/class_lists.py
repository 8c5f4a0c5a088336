"""Class names and colors that a person gives, or that lie beside masks."""

import csv
import io
import re

import numpy as np

from fasseg_jax.data.classes import DataError, excerpt, is_number, read_table_text
from fasseg_jax.importing.annotations import clean_name
from fasseg_jax.runtime.files import Path

__all__ = ["read_class_list"]

NAME_COLOR = re.compile(
    r"\s*(?P<name>[^:#]+?)\s*:\s*(?P<color>\d+\s*,\s*\d+\s*,\s*\d+)\s*(:.*)?"
)  # of CVAT's labelmap.txt
ID_NAME_COLOR = re.compile(r"\s*\d+\s+(?P<name>.+?)\s+(?P<color>\d+\s+\d+\s+\d+)\s*")  # of classes.txt
COLOR_NAME = re.compile(r"\s*(?P<color>\d+\s+\d+\s+\d+)\s+(?P<name>.+?)\s*")  # of CamVid's label_colors.txt


def read_class_list(file: Path) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Read names of classes, and their colors if the file has them.

    A line is `NAME`, `ID NAME R G B` (classes.txt), `R G B NAME`, or `NAME:R,G,B:...:...` (labelmap.txt of CVAT). A
    file that ends in .csv has the columns name, r, g, b.

    Returns:
      K names in the order of the file, and (K, 3) uint8 or None.

    Raises:
      DataError: the file cannot be read, or a line is wrong.
    """
    text = read_table_text(file)
    if file.suffix.lower() == ".csv":
        found = _read_csv(file, text)
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1)]
        found = [_read_line(file, number, line) for number, line in lines if line.strip() and line.lstrip()[0] != "#"]
    if not found:
        raise DataError(f"{file}: holds no classes")
    if len({color is None for _, color in found}) > 1:
        raise DataError(f"{file}: some classes have a color and some have none; give all one, or none")
    names = tuple(name for name, _ in found)
    return names, None if found[0][1] is None else np.array([color for _, color in found], np.uint8)


def _read_line(file: Path, number: int, line: str) -> tuple[str, list[int] | None]:
    for pattern in (ID_NAME_COLOR, COLOR_NAME, NAME_COLOR):
        if match := pattern.fullmatch(line):
            return clean_name(match["name"]), _color(f"{file}, line {number}", re.split(r"[\s,]+", match["color"]))
    return clean_name(line), None


def _color(where: str, parts: list[str]) -> list[int]:
    if len(parts) != 3 or not all(is_number(part, largest=255) for part in parts):
        raise DataError(f"{where}: a color has three numbers from 0 to 255, got {excerpt(' '.join(parts))}")
    return [int(part) for part in parts]


def _read_csv(file: Path, text: str) -> list[tuple[str, list[int] | None]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = {(column or "").strip().lower(): column for column in rows.fieldnames or ()}
        if not {"name", "r", "g", "b"} <= columns.keys():
            raise DataError(f"{file}: the first row must name the columns name, r, g, b")
        return [
            (
                clean_name(row[columns["name"]] or ""),
                _color(f"{file}, line {rows.line_num}", [(row[columns[key]] or "").strip() for key in "rgb"]),
            )
            for row in rows
        ]
    except csv.Error as error:
        raise DataError(f"{file}, line {rows.line_num}: is no CSV ({error})") from error
