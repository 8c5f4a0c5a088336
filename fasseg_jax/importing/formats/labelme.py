"""labelme: a JSON file beside each photo. https://github.com/wkentaro/labelme."""

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from fasseg_jax.data.classes import DataError, read_table_text
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item, Shape, clean_name
from fasseg_jax.importing.json_files import as_size, field, looks_like_json, read_json, read_ring
from fasseg_jax.importing.photos import PhotoIndex, files_of, output_name, split_in
from fasseg_jax.runtime.files import Path

__all__ = ["LABELME"]

IGNORE = "__ignore__"  # labelme's own name of pixels that count for nothing


def recognize(source: Path) -> bool:
    """Whether one of the first JSON files has shapes and the name of a photo."""
    return any(looks_like_json(file, "shapes", "imagePath") for file in files_of(source, ".json")[:10])


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all JSON files."""
    folder = source if source.is_dir() else source.parent
    index = PhotoIndex(folder, options.photos, exclude=options.output)
    items: list[Item] = []
    problems: list[str] = []
    for file in files_of(source, ".json"):
        try:
            items.append(_read_item(file, folder, options, index))
        except DataError as error:
            problems.append(str(error))
    used = {item.photo for item in items}
    bare = [path for path in index.paths if path not in used]
    notes = [f"{path}: has no labelme file, and is left out" for path in bare]
    return Annotations(tuple(items), _classes(folder, items), problems=tuple(problems), notes=tuple(notes))


def _read_item(file: Path, folder: Path, options: ImportOptions, index: PhotoIndex) -> Item:
    content = read_json(file)
    shapes = field(content, "shapes", list, f"{file} is no labelme file")
    image_path = field(content, "imagePath", str, f"{file} is no labelme file")
    photo: Path | Callable[[], bytes]
    try:
        photo = index.find(image_path, file.parent)
        name = output_name(photo, folder, options.photos)
    except DataError as error:
        if not content.get("imageData"):
            raise DataError(f"{file}: {error}") from error
        photo = lambda: _embedded_photo(file)
        name = output_name(file, folder).removesuffix(".json") + ".png"
    split, name = split_in(name)
    text = json.dumps([shapes, as_size(content, "imageHeight", "imageWidth")])
    return Item(
        name=name,
        photo=photo,
        origin=str(file),
        labels=tuple(_read_shape(shape, number) for number, shape in enumerate(shapes, start=1)),
        version=hashlib.sha256(text.encode()).hexdigest(),
        split=split,
        size=as_size(content, "imageHeight", "imageWidth"),
    )


def _embedded_photo(file: Path) -> bytes:
    try:
        return base64.b64decode(field(read_json(file), "imageData", str, str(file)), validate=True)
    except binascii.Error as error:
        raise DataError(f"{file}: the photo in imageData is damaged ({error}); add the photo itself") from error


def _read_shape(shape: Any, number: int) -> Shape:
    where = f"shape {number}"
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not clean_name(shape["label"]):
        return Shape(where, None, "dropped", data="has no label")
    label = None if shape["label"] == IGNORE else clean_name(shape["label"])
    kind = shape.get("shape_type") or "polygon"
    try:
        ring = read_ring(shape.get("points"))
        if kind in ("polygon", "oriented_rectangle"):
            return Shape(where, label, "polygon", (ring,))
        if kind == "rectangle":
            return Shape(where, label, "rectangle", (ring,))
        if kind == "circle":
            return Shape(where, label, "ellipse", (_box_of_circle(ring),))
        if kind == "mask":
            return Shape(where, label, "mask", data=_read_mask(shape, ring))
    except ValueError as error:
        return Shape(where, label, "dropped", data=str(error))
    return Shape(where, label, "dropped", data=f"is of type {str(kind)[:40]!r}, which has no area")


def _box_of_circle(ring: np.ndarray) -> np.ndarray:
    if len(ring) != 2:
        raise ValueError(f"has {len(ring)} points; a circle needs its center and a point of it")
    (x, y), (edge_x, edge_y) = ring.tolist()
    radius = math.hypot(x - edge_x, y - edge_y)
    return np.array([[x - radius, y - radius], [x + radius, y + radius]])


def _read_mask(shape: dict[str, Any], ring: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask, and its upper left corner (x, y)."""
    if len(ring) != 2 or not np.isfinite(ring).all() or np.abs(ring).max() > 1e6:
        raise ValueError("the corners of its mask are no two points")
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.get("mask") or ""))) as image:
            values = np.asarray(image.convert("L")) > 0
    except Exception as error:  # decoders raise nearly anything for damaged data
        raise ValueError("its mask is no base64 picture") from error
    (left, top), (right, bottom) = ring.astype(int).tolist()
    if values.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(f"its mask is {values.shape[1]}x{values.shape[0]} pixels, but its corners lie otherwise")
    return values, (left, top)


def _classes(folder: Path, items: list[Item]) -> tuple[str, ...]:
    """The lines of labels.txt, as labelme's own converters read it, then all others by the alphabet."""
    listed = read_table_text(folder / "labels.txt").splitlines() if (folder / "labels.txt").is_file() else []
    names = dict.fromkeys(clean_name(line) for line in listed if clean_name(line) not in ("", IGNORE))
    found = {shape.label for item in items if isinstance(item.labels, tuple) for shape in item.labels}
    return tuple(names | dict.fromkeys(sorted(name for name in found if name is not None)))


LABELME = Format("labelme JSON files", recognize, read)
