"""Class tables: the names and colors of a data set's classes, one CSV file per data set."""

import codecs
import csv
import dataclasses
import io
import unicodedata
from collections.abc import Iterable

import numpy as np

from fasseg_jax.runtime.files import Path, make_path, require_regular_file, write_atomically

__all__ = [
    "ClassTable",
    "DataError",
    "check_class_name",
    "check_num_classes",
    "excerpt",
    "is_number",
    "load_classes",
    "read_table_text",
    "write_classes",
]

TABLES = Path(__file__).parent / "class_tables"


class DataError(ValueError):
    """Something is wrong with the data; the message names the file or field, and says what to do."""


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """Names and colors of K classes, in the order of the class ids 0 to K - 1.

    Attributes:
      names: K class names.
      palette: (K, 3) uint8 RGB, one color per class.
      label_ids: the id of each class in the data set's own label files, if these have ids of their own.

    Raises:
      ValueError: the palette does not fit the names.
      DataError: a name holds control characters, which could rewrite the terminal, or is no text.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    label_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.palette.shape != (len(self.names), 3) or self.palette.dtype != np.uint8:
            raise ValueError(
                f"a palette for {len(self.names)} classes must be ({len(self.names)}, 3) uint8, "
                f"got {self.palette.shape} {self.palette.dtype}"
            )
        for class_id, name in enumerate(self.names):
            check_class_name(name, f"class {class_id}")

    def __len__(self) -> int:
        return len(self.names)


def check_class_name(name: object, where: str) -> None:
    """Raise a `DataError`, which begins with `where`, if a class name is no text or could rewrite the terminal."""
    if not isinstance(name, str):
        raise DataError(f"{where}: the name must be a text, got {excerpt(str(name))}")
    if any(unicodedata.category(letter) in ("Cc", "Cs") and letter != "\t" for letter in name):
        raise DataError(f"{where}: the name {excerpt(name)} holds control characters; remove them")


def check_num_classes(classes: ClassTable, num_classes: int) -> None:
    """Raise a `DataError` if the data have another number of classes than `num_classes`, the model's."""
    if len(classes) != num_classes:
        raise DataError(
            f"config.model.num_classes is {num_classes}, but the data have {len(classes)} classes: "
            f"set --config.model.num_classes={len(classes)}, or --config.data.dataset to the model's class table"
        )


def load_classes(name: str) -> ClassTable:
    """Read a class table.

    Args:
      name: a table of the package ("ade20k", "cityscapes"; `config.data.dataset` names one), or the path of your own
        CSV file, ending in ".csv". Its first row names the columns. The columns `id`, `r`, `g`, `b` (0 to 255) and
        `name` are needed, `label_id` is optional, and others are ignored. Rows are in the order of the ids 0, 1, 2, ...

    Raises:
      FileNotFoundError: there is no such table or file.
      DataError: the file is not a class table; the message names the line.
    """
    file = make_path(name) if name.endswith(".csv") else TABLES / f"{name}.csv"
    if not file.exists():
        known = ", ".join(sorted(table.stem for table in TABLES.glob("*.csv")))
        raise FileNotFoundError(f"no class table {name!r}: choose one of {known}, or give the path of a .csv file")
    names: list[str] = []
    palette: list[list[int]] = []
    label_ids: list[int] = []
    reader = csv.DictReader(io.StringIO(read_table_text(file), newline=""))
    try:
        absent = {"id", "r", "g", "b", "name"} - set(reader.fieldnames or ())
        if absent:
            raise DataError(f"{file}: the first row must name the columns id, r, g, b, name; absent: {sorted(absent)}")
        for row in reader:
            line = f"{file}, line {reader.line_num}"
            names.append(_class_name(row, line, len(names)))
            palette.append(_numbers(row, "rgb", line, largest=255))
            if "label_id" in row:
                label_ids += _numbers(row, ["label_id"], line, largest=65535)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no CSV ({error}); write it as text again") from error
    if not names:
        raise DataError(f"{file}: holds no classes")
    return ClassTable(tuple(names), np.array(palette, np.uint8), tuple(label_ids) or None)


def read_table_text(file: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
      DataError: the file cannot be read, or is in another encoding.
    """
    try:
        require_regular_file(file)
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line}: is no UTF-8 text; save the file in UTF-8") from error
    if "\0" in text:
        raise DataError(f"{file}: is no UTF-8 text (it holds zero bytes); save the file in UTF-8")
    return text


def is_number(text: str, largest: int) -> bool:
    """Whether a text is a whole number from 0 to `largest`."""
    return text.isdecimal() and len(text) <= 9 and int(text) <= largest


def excerpt(text: str | None) -> str:
    """The beginning of a text, in quotes, for a message: what a file holds may be megabytes long."""
    return repr(text if text is None or len(text) <= 60 else f"{text[:60]}...")


def _class_name(row: dict[str, str], line: str, expected_id: int) -> str:
    if row["id"] != str(expected_id):
        raise DataError(f"{line}: expected id {expected_id} (ids run from 0 without gaps), got {excerpt(row['id'])}")
    if not row["name"]:
        raise DataError(f"{line}: the class has no name")
    check_class_name(row["name"], line)
    return row["name"]


def _numbers(row: dict[str, str], columns: Iterable[str], line: str, largest: int) -> list[int]:
    texts = [row[column] or "" for column in columns]
    if not all(is_number(text, largest) for text in texts):
        got = ", ".join(map(excerpt, texts))
        raise DataError(f"{line}: {', '.join(columns)} must be whole numbers from 0 to {largest}, got {got}")
    return [int(text) for text in texts]


def write_classes(file: Path, classes: ClassTable) -> None:
    """Write a class table that `load_classes` reads.

    Names stay as they are, also those that a spreadsheet would run as a formula: they must be the same when read again.
    """
    with write_atomically(file) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["id", "r", "g", "b", "name", *(["label_id"] if classes.label_ids else [])])
        for class_id, (name, color) in enumerate(zip(classes.names, classes.palette.tolist(), strict=True)):
            label_id = [classes.label_ids[class_id]] if classes.label_ids else []
            writer.writerow([class_id, *color, name, *label_id])
