"""Reads JSON files and the fields in them, with a message for each mistake."""

import functools
import json
from typing import Any

import numpy as np

from fasseg_jax.data.classes import DataError, read_table_text
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.runtime.files import Path

__all__ = ["as_id", "as_size", "field", "looks_like_json", "read_json", "read_ring"]


def read_json(file: Path) -> Any:
    """Read a JSON file in UTF-8 or UTF-16. The last one is kept: a large file is looked at by each format.

    Raises:
      DataError: the file is no JSON; the message names the line.
    """
    return _parse(file, file_version(file))


@functools.lru_cache(maxsize=1)
def _parse(file: Path, version: str) -> Any:
    text = read_table_text(file)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {error.lineno}: is no JSON ({error.msg}); export the annotations again"
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply; numbers of thousands of digits
        raise DataError(f"{file}: is no JSON that can be read ({error}); export the annotations again") from error


def looks_like_json(file: Path, *needed: str) -> bool:
    """Whether a file is a JSON object with all these keys, or a list of such; False for anything odd.

    "annotations.KEY" is a key of its first annotation.
    """
    try:
        return all(key in _keys(file, file_version(file)) for key in needed)
    except DataError:
        return False


@functools.lru_cache(maxsize=64)
def _keys(file: Path, version: str) -> frozenset[str]:
    """The keys of an object, or of the first of a list; and those of its first annotation, after "annotations."."""
    content = read_json(file)
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        return frozenset()
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return frozenset(content) | {f"annotations.{key}" for key in (first if isinstance(first, dict) else ())}


def field(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a JSON object.

    Raises:
      DataError: it is absent or of another type.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise DataError(f"{where}: the field {name!r} must be of type {expected}, got {str(value)[:60]!r}")
    return value


def as_id(value: object) -> str:
    """An id as text: some tools write the same id as a number here and as text there."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_size(record: Any, height: str, width: str) -> tuple[int, int] | None:
    """(height, width) of the photo as a record gives it, or None if it does not."""
    sides = [record.get(height), record.get(width)]
    if not all(isinstance(side, int | float) and not isinstance(side, bool) and 0 < side < 1e9 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def read_ring(points: Any) -> np.ndarray:
    """Points [[x, y], ...] as (n, 2) float64.

    Raises:
      ValueError: they are no such list.
    """
    try:
        ring = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"its points are no pairs of numbers: {str(points)[:60]}") from None
    if ring.size == 0:
        return np.zeros((0, 2))
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError(f"its points are no pairs of numbers: {str(points)[:60]}")
    return ring
