"""CVAT XML, "CVAT for images". https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat.

The XML parser refuses document types and entities, which may blow up or read other files.
"""

import hashlib
import math
import re
from typing import Any

import numpy as np

from fasseg_jax.data.classes import DataError, is_number
from fasseg_jax.data.folder_words import split_of
from fasseg_jax.data.images import MAX_PIXELS
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item, Shape, clean_name, load_library
from fasseg_jax.importing.photos import PhotoIndex, files_of, output_name, split_in
from fasseg_jax.runtime.files import Path, require_regular_file

__all__ = ["CVAT"]

CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
ELLIPSE = np.stack([np.cos(angles := np.linspace(0, 2 * np.pi, 180, endpoint=False)), np.sin(angles)], axis=1)


def recognize(source: Path) -> bool:
    """Whether one of the first XML files begins as CVAT's do."""
    return any(_begins_as_cvat(file) for file in files_of(source, ".xml")[:10])


def _begins_as_cvat(file: Path) -> bool:
    try:
        require_regular_file(file)
        with file.open("rb") as content:
            return b"<annotations" in content.read(2000)
    except OSError:
        return False


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all XML files."""
    load_library("pycocotools.mask")
    folder = source if source.is_dir() else source.parent
    index = PhotoIndex(folder, options.photos, exclude=options.output)
    items: list[Item] = []
    problems: list[str] = []
    colors: dict[str, tuple[int, int, int] | None] = {}
    for file in files_of(source, ".xml"):
        try:
            root = _parse(file)
        except DataError as error:
            problems.append(str(error))
            continue
        for label in root.iterfind("meta//label"):
            if name := clean_name(label.findtext("name") or ""):
                colors.setdefault(name, _hex_color(label.findtext("color") or ""))
        if tracks := len(root.findall("track")):
            problems.append(f'{file}: holds {tracks} tracks of a video; export it as "CVAT for images"')
        for image in root.iterfind("image"):
            try:
                items.append(_read_item(image, file, folder, options, index))
            except DataError as error:
                problems.append(str(error))
    found = {shape.label for item in items if isinstance(item.labels, tuple) for shape in item.labels}
    names = tuple(colors | dict.fromkeys(sorted(name for name in found if name is not None and name not in colors)))
    return Annotations(tuple(items), names, _palette([colors.get(name) for name in names]), tuple(problems))


def _palette(colors: list[tuple[int, int, int] | None]) -> np.ndarray | None:
    """The labels' colors, if all have one and no two are the same."""
    known = [color for color in colors if color is not None]
    return np.array(known, np.uint8) if known and len(set(known)) == len(colors) else None


def _parse(file: Path) -> Any:
    library = load_library("defusedxml.ElementTree")
    try:
        require_regular_file(file)
        root = library.parse(file, forbid_dtd=True).getroot()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except load_library("defusedxml.common").DefusedXmlException as error:
        raise DataError(
            f"{file}: holds a document type or entities, which CVAT does not write; export it again"
        ) from error
    except (library.ParseError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{file}: is no XML ({error}); export it again") from error
    if root.tag != "annotations":
        raise DataError(f'{file}: is no file of CVAT (it begins with {root.tag[:40]!r}); export as "CVAT for images"')
    return root


def _hex_color(text: str) -> tuple[int, int, int] | None:
    match = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text.strip())
    return (int(match[1], 16), int(match[2], 16), int(match[3], 16)) if match else None


def _read_item(image: Any, file: Path, folder: Path, options: ImportOptions, index: PhotoIndex) -> Item:
    name = image.get("name") or ""
    where = f"{file}, image {name[:200]!r}"
    try:
        photo = index.find(name, *([options.photos] if options.photos else []), file.parent, file.parent / "images")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    sides = [image.get("height") or "", image.get("width") or ""]
    size = (int(sides[0]), int(sides[1])) if all(is_number(side, 10**6) and int(side) for side in sides) else None
    elements = [(number, element) for number, element in enumerate(image, start=1) if element.tag != "tag"]
    elements.sort(key=lambda numbered: _depth(numbered[1]))
    split, result = split_in(output_name(photo, options.photos, folder))
    text = repr([(element.tag, sorted(element.attrib.items())) for _, element in elements])
    return Item(
        name=result,
        photo=photo,
        origin=where,
        labels=tuple(_read_shape(element, number) for number, element in elements),
        version=hashlib.sha256(f"{size} {text}".encode("utf-8", "surrogatepass")).hexdigest(),
        split=split_of(image.get("subset") or "") or split,
        size=size,
    )


def _depth(element: Any) -> float:
    try:
        return float(element.get("z_order") or 0)
    except ValueError:
        return 0.0


def _read_shape(element: Any, number: int) -> Shape:
    where = f"{element.tag} {number}"
    label = clean_name(element.get("label") or "")
    if not label:
        return Shape(where, None, "dropped", data="has no label")
    try:
        if element.tag == "polygon":
            return Shape(where, label, "coco_polygon", (_points(element.get("points") or ""),))
        if element.tag == "box":
            left, top, right, bottom = _numbers(element, "xtl", "ytl", "xbr", "ybr")
            center, half = np.array([left + right, top + bottom]) / 2, np.array([right - left, bottom - top]) / 2
            return Shape(where, label, "coco_polygon", (_turned(center, half, CORNERS, element),))
        if element.tag == "ellipse":
            x, y, radius_x, radius_y = _numbers(element, "cx", "cy", "rx", "ry")
            outline = _turned(np.array([x, y]), np.array([radius_x, radius_y]), ELLIPSE, element)
            return Shape(where, label, "coco_polygon", (outline,))
        if element.tag == "mask":
            return Shape(where, label, "mask", data=_read_mask(element))
    except ValueError as error:
        return Shape(where, label, "dropped", data=str(error))
    return Shape(where, label, "dropped", data=f"is of type {element.tag[:40]!r}, which has no area")


def _points(text: str) -> np.ndarray:
    """Points "x,y;x,y;..." as (n, 2)."""
    try:
        return np.array(
            [[float(part) for part in pair.split(",")] for pair in text.split(";") if pair], np.float64
        ).reshape(-1, 2)
    except ValueError:
        raise ValueError(f"its points are no pairs of numbers: {text[:60]!r}") from None


def _numbers(element: Any, *names: str) -> list[float]:
    try:
        return [float(element.get(name) or "") for name in names]
    except ValueError:
        raise ValueError(f"{', '.join(names)} must be numbers") from None


def _turned(center: np.ndarray, half: np.ndarray, outline: np.ndarray, element: Any) -> np.ndarray:
    """An outline of the unit square or circle, scaled, and turned clockwise by the element's degrees."""
    (degrees,) = _numbers(element, "rotation") if element.get("rotation") else (0.0,)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return center + (outline * half) @ np.array([[cosine, sine], [-sine, cosine]])


def _read_mask(element: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask of the run lengths, row by row and beginning with outside; and its upper left corner (x, y)."""
    left, top, width, height = _numbers(element, "left", "top", "width", "height")
    if not (0 < width * height <= MAX_PIXELS and max(abs(left), abs(top)) < 1e6):
        raise ValueError("the box of its mask has no size")
    texts = [text.strip() for text in (element.get("rle") or "").split(",")]
    if not all(is_number(text, largest=MAX_PIXELS) for text in texts):
        raise ValueError("its run lengths are no whole numbers from 0")
    counts = np.array(list(map(int, texts)), np.int64)
    if counts.sum() != int(width) * int(height):
        raise ValueError(f"its run lengths are {counts.sum()} pixels, its box is {int(width)}x{int(height)}")
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(int(height), int(width)), (int(left), int(top))


CVAT = Format("CVAT XML", recognize, read)
