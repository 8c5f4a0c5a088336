"""What a reader of a format returns: photos, their shapes or label maps, and classes."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.runtime.files import Path

__all__ = [
    "IGNORED",
    "UNLABELED",
    "Annotations",
    "Format",
    "ImportOptions",
    "Item",
    "Shape",
    "clean_name",
    "load_library",
]

IGNORED = -1  # in a label map of a reader: the pixel counts for nothing
UNLABELED = -2  # in a painted label map: no shape covers the pixel
Kind = Literal["polygon", "coco_polygon", "rectangle", "ellipse", "mask", "rle", "dropped"]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One annotated shape. Coordinates are xy in pixels, with (0, 0) as the upper left corner of the photo.

    Attributes:
      where: names the shape in messages, such as "shape 3".
      label: name of its class; None for ignored pixels.
      kind: how its pixels are found, see `shapes.DRAWN`; "dropped" if it has no area, for the reason in `data`.
      rings: outlines, each (n, 2) float64. Two opposite corners of a rectangle or of the box around an ellipse.
      data: of "mask" ((h, w) bool, (left, top)); of "rle" what pycocotools decodes; of "dropped" the reason.
      whole: if not 0, coordinates are not in pixels: a side of the photo has this length, such as 1 or 100.
    """

    where: str
    label: str | None
    kind: Kind
    rings: tuple[np.ndarray, ...] = ()
    data: Any = None
    whole: float = 0


@dataclasses.dataclass(frozen=True)
class Item:
    """One annotated photo.

    Attributes:
      name: path of the photo below its split, with "/" and an extension.
      photo: the file, or a function that returns its bytes.
      origin: names the annotation in messages: a file, and perhaps an entry in it.
      labels: shapes in the order in which the annotation holds them, or a function that returns a label map
        (H, W) int32 of indices of `Annotations.classes` or `IGNORED`, and notes, or raises a `DataError`.
      version: changes when the annotation or the photo does.
      split: "training", "validation", "test", or None if the source has no splits.
      size: (height, width) that the annotation says its photo has, if it does.
      notes: what the reader has to say about it, one line each.
    """

    name: str
    photo: Path | Callable[[], bytes]
    origin: str
    labels: tuple[Shape, ...] | Callable[[], tuple[np.ndarray, list[str]]]
    version: str
    split: str | None = None
    size: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All that a reader found.

    Attributes:
      items: the photos.
      classes: their names, in the order of the ids.
      colors: (K, 3) uint8, if the source has colors.
      problems: what cannot be imported and why, one line each; the result is not complete without it.
      notes: what else is worth knowing, one line each.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    colors: np.ndarray | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What the person who imports decides.

    Attributes:
      photos: a folder to look for photos in, besides the input.
      classes: names of the classes in the order of their ids, if given.
      colors: (K, 3) uint8 of `classes`, if given.
      overlap: which of two shapes covers the other: "later", or "smaller".
      unlabeled: what pixels are that no shape covers: "background", a class, or "ignore"; None leaves it to the format.
      validation: share of photos for validation, if the source has none.
      group: which photos stay together then; see `fasseg_jax.data.splitting.divide`.
      orientation: what labels are drawn on if EXIF turns a photo; see `config.data.label_orientation`.
      tolerance: the most that a channel of a mask's color may differ from the listed one.
      output: the folder of the result, in which no photos are looked for.
    """

    photos: Path | None = None
    classes: tuple[str, ...] | None = None
    colors: np.ndarray | None = None
    overlap: str = "later"
    unlabeled: str | None = None
    validation: float = 0.2
    group: str = "auto"
    orientation: str = "auto"
    tolerance: int = 0
    output: Path | None = None


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of annotations.

    Attributes:
      title: what the program calls it.
      recognize: whether a folder or file holds it; looks at a few files, and raises nothing for odd ones.
      read: reads all annotations, but no photos. Raises a `DataError` if the source as a whole cannot be read.
      unlabeled: what pixels are by default that no shape covers.
    """

    title: str
    recognize: Callable[[Path], bool]
    read: Callable[[Path, ImportOptions], Annotations]
    unlabeled: str = "background"


def clean_name(name: object) -> str:
    """A class name as one line of `classes.txt` holds it: without line ends, doubled spaces and lone surrogates."""
    text = str(name).replace("\0", " ").encode("utf-8", "replace").decode()
    return " ".join(text.split())


def load_library(module: str) -> Any:
    """Import a library of the extra `import`; a `DataError` that says how to install it if it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{module.partition('.')[0]} is needed for this format ({error}): pip install 'fasseg_jax[import]'"
        ) from error
