"""Class tables: the names and colours of a data set's classes, one CSV file per data set."""

import csv
import dataclasses

import numpy as np

from fasseg_jax.runtime.files import Path

__all__ = ["ClassTable", "DataError", "check_num_classes", "load_classes"]

TABLES = Path(__file__).parent / "class_tables"


class DataError(ValueError):
    """Something is wrong with the data; the message names the file or field, and what to do."""


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Names and colours of K classes, in the order of the class ids 0 to K - 1.

    Attributes:
      names: K class names.
      palette: (K, 3) uint8 RGB, one colour per class.
    """

    names: tuple[str, ...]
    palette: np.ndarray

    def __post_init__(self):
        if self.palette.shape != (len(self.names), 3) or self.palette.dtype != np.uint8:
            raise ValueError(
                f"a palette for {len(self.names)} classes must be ({len(self.names)}, 3) uint8, "
                f"got {self.palette.shape} {self.palette.dtype}"
            )

    def __len__(self) -> int:
        return len(self.names)


def check_num_classes(classes: ClassTable, num_classes: int) -> None:
    """Raise a `DataError` if the data's classes are not as many as `num_classes`, the model's."""
    if len(classes) != num_classes:
        raise DataError(
            f"config.model.num_classes is {num_classes}, but the data have {len(classes)} classes: "
            f"set --config.model.num_classes={len(classes)}, or --config.data.dataset to the model's class table"
        )


def load_classes(name: str) -> ClassTable:
    """Read a class table.

    Args:
      name: a table of the package ("ade20k", "cityscapes"; the `data.dataset` of a configuration), or the path of a
        CSV file of one's own, ending in ".csv". The first row names the columns; `id`, `r`, `g`, `b` and `name` are
        read (colours 0 to 255), others may be there. Rows are in the order of the ids 0, 1, 2, ...

    Raises:
      FileNotFoundError: no such table or file.
      ValueError: the file is not a class table; the message names the line.
    """
    file = Path(name) if name.endswith(".csv") else TABLES / f"{name}.csv"
    if not file.is_file():
        known = ", ".join(sorted(table.stem for table in TABLES.glob("*.csv")))
        raise FileNotFoundError(f"no class table {name!r}: choose one of {known}, or give the path of a .csv file")
    names, palette = [], []
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        absent = {"id", "r", "g", "b", "name"} - set(reader.fieldnames or ())
        if absent:
            raise ValueError(f"{file}: the first row must name the columns id, r, g, b, name; absent: {sorted(absent)}")
        for row in reader:
            names.append(_class_name(row, file, reader.line_num, len(names)))
            palette.append(_colour(row, file, reader.line_num))
    if not names:
        raise ValueError(f"{file}: holds no classes")
    return ClassTable(tuple(names), np.array(palette, np.uint8))


def _class_name(row: dict, file: Path, line: int, expected_id: int) -> str:
    if row["id"] != str(expected_id):
        raise ValueError(
            f"{file}, line {line}: expected id {expected_id} (ids run from 0 without gaps), got {row['id']!r}"
        )
    if not row["name"]:
        raise ValueError(f"{file}, line {line}: the class has no name")
    return row["name"]


def _colour(row: dict, file: Path, line: int) -> list[int]:
    texts = [row[channel] or "" for channel in "rgb"]
    if not all(text.isdecimal() and int(text) <= 255 for text in texts):
        raise ValueError(f"{file}, line {line}: r, g, b must be whole numbers from 0 to 255, got {', '.join(texts)}")
    return [int(text) for text in texts]
