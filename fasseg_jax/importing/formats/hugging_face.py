"""Data sets of Hugging Face on disk: parquet files with a column of photos and one of label maps.

`hf download --repo-type dataset NAME --local-dir FOLDER` makes such a folder. Nothing is fetched here, and no
code of a data set runs.
"""

import functools
import re
import threading
from typing import Any

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.folder_words import split_of
from fasseg_jax.data.labels import count_labels, decode_labels
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.importing.annotations import IGNORED, Annotations, Format, ImportOptions, Item, clean_name, load_library
from fasseg_jax.importing.json_files import read_json
from fasseg_jax.importing.photos import files_of
from fasseg_jax.runtime.files import Path, require_regular_file

__all__ = ["HUGGING_FACE"]

PHOTO_COLUMNS = ("image", "images", "pixel_values", "img", "photo")
LABEL_COLUMNS = (
    *("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation", "segmentation_mask"),
    *("semantic_segmentation", "semantic_mask", "semantic", "seg", "gt"),
)
IGNORE_LABEL = 255
_LOCK = threading.Lock()  # threads share the open files and the row groups that are kept


def recognize(source: Path) -> bool:
    """Whether there are parquet files."""
    return bool(files_of(source, ".parquet"))


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read the tables; photos and label maps are read when they are written."""
    load_library("pyarrow.parquet")
    folder = source if source.is_dir() else source.parent
    tables: list[tuple[Path, tuple[str, str], list[int]]] = []
    problems: list[str] = []
    for file in files_of(source, ".parquet"):
        try:
            tables.append((file, *_columns(file)))
        except DataError as error:
            problems.append(str(error))
    names, notes = _classes(folder, tables, options)
    items = [
        _item(file, columns, group, row, number, folder, names)
        for file, columns, groups in tables
        for number, (group, row) in enumerate((group, row) for group, rows in enumerate(groups) for row in range(rows))
    ]
    return Annotations(tuple(items), names, problems=tuple(problems), notes=notes)


def _columns(file: Path) -> tuple[tuple[str, str], list[int]]:
    """The columns of photos and of label maps, and the number of rows of each row group."""
    opened = _open(file, file_version(file))
    images = {column.name for column in opened.schema_arrow if _holds_files(column.type)}
    photos = [name for name in PHOTO_COLUMNS if name in images]
    labels = [name for name in LABEL_COLUMNS if name in images]
    if not photos or not labels:
        raise DataError(
            f"{file}: has the picture columns {', '.join(sorted(images)) or '(none)'}; one must be called image, "
            "and one annotation, label or mask"
        )
    metadata = opened.metadata
    return (photos[0], labels[0]), [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _holds_files(kind: Any) -> bool:
    """Whether a column holds files as Hugging Face stores them: structs of bytes and path."""
    types = load_library("pyarrow.types")
    return types.is_struct(kind) and {"bytes"} <= {kind.field(index).name for index in range(kind.num_fields)}


@functools.lru_cache(maxsize=4)
def _open(file: Path, version: str) -> Any:
    try:
        require_regular_file(file)
        return load_library("pyarrow.parquet").ParquetFile(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except load_library("pyarrow").ArrowException as error:
        raise DataError(f"{file}: is no parquet file ({str(error)[:100]}); download it again") from error


@functools.lru_cache(maxsize=2)
def _read_group(file: Path, version: str, columns: tuple[str, str], group: int) -> Any:
    try:
        return _open(file, version).read_row_group(group, columns=list(columns))
    except (OSError, load_library("pyarrow").ArrowException) as error:
        raise DataError(
            f"{file}: row group {group} is damaged ({str(error)[:100]}); download the file again"
        ) from error


def _cell(file: Path, columns: tuple[str, str], group: int, row: int, column: int) -> bytes:
    """The file in a cell."""
    with _LOCK:
        value = _read_group(file, file_version(file), columns, group)[columns[column]][row].as_py()
    value = value if isinstance(value, dict) else {}
    if value.get("bytes"):
        return value["bytes"]
    where = f"{file}, row {row} of group {group}: the column {columns[column]!r}"
    if not value.get("path"):
        raise DataError(f"{where} holds no picture")
    path = file.parent / value["path"]  # `Dataset.to_parquet` writes the paths of local files only
    try:
        require_regular_file(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{where} names {path}, which cannot be read ({error}); embed the pictures") from error


def _item(
    file: Path, columns: tuple[str, str], group: int, row: int, number: int, folder: Path, names: tuple[str, ...]
) -> Item:
    words = re.split(r"[-_.]", file.stem.lower())
    split = next((split for word in words if (split := split_of(word))), None) or split_of(file.parent.name)
    where = f"{file}, row {number}"
    return Item(
        name=f"{file.stem}-{number:06d}.jpg",
        photo=lambda: _cell(file, columns, group, row, 0),
        origin=where,
        labels=lambda: (_read_labels(_cell(file, columns, group, row, 1), names, where), []),
        version=f"{file_version(file)} {columns} {names}",
        split=split,
    )


def _read_labels(content: bytes, names: tuple[str, ...], where: str) -> np.ndarray:
    """Ids of the classes, (H, W) int32; 255 is ignored."""
    values = decode_labels(content, where)
    labels = values.astype(np.int32)
    labels[(values == IGNORE_LABEL) & (len(names) <= IGNORE_LABEL)] = IGNORED
    if (unknown := labels[labels >= len(names)]).size:
        raise DataError(
            f"{where}: holds the ids {np.unique(unknown)[:8].tolist()}, but there are {len(names)} classes; list all "
            "by --classes=FILE, one a line"
        )
    return labels


def _classes(
    folder: Path, tables: list[tuple[Path, tuple[str, str], list[int]]], options: ImportOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names from the options or from id2label.json; or else numbers up to the largest id of all label maps."""
    if options.classes is not None:
        return options.classes, ()
    if (folder / "id2label.json").is_file():
        table = read_json(folder / "id2label.json")
        if not isinstance(table, dict) or sorted(table) != sorted(map(str, range(len(table)))):
            raise DataError(f"{folder / 'id2label.json'}: its keys must be the ids from 0 without gaps")
        return tuple(clean_name(table[str(index)]) for index in range(len(table))), ()
    largest = 0
    for file, columns, groups in tables:
        for group, rows in enumerate(groups):
            for row in range(rows):
                largest = max(largest, _largest_id(file, columns, group, row))
    note = "the data do not name their classes; list the names by --classes=FILE, one a line"
    return tuple(f"class {index}" for index in range(largest + 1)), (note,)


def _largest_id(file: Path, columns: tuple[str, str], group: int, row: int) -> int:
    """The largest id of a label map besides 255; 0 if it cannot be read, which is said when it is written."""
    try:
        used = np.flatnonzero(count_labels(decode_labels(_cell(file, columns, group, row, 1), "")))
    except DataError:
        return 0
    return int(used[used != IGNORE_LABEL].max(initial=0))


HUGGING_FACE = Format("Hugging Face parquet files", recognize, read)
