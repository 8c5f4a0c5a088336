"""Label Studio: the export "JSON", with outlines, boxes, ellipses and brush masks. https://labelstud.io/guide/export."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.images import MAX_PIXELS, PHOTO_EXTENSIONS
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item, Shape, clean_name
from fasseg_jax.importing.brush_runs import decode_brush
from fasseg_jax.importing.json_files import as_size, looks_like_json, read_json, read_ring
from fasseg_jax.importing.photos import PhotoIndex, files_of, output_name, split_in
from fasseg_jax.runtime.files import Path

__all__ = ["LABEL_STUDIO"]

LABEL_KEYS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels", "keypointlabels", "labels")
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded photo
ANGLES = np.linspace(0, 2 * np.pi, 180, endpoint=False)


def recognize(source: Path) -> bool:
    """Whether one of the first JSON files lists tasks with data and annotations."""
    return any(looks_like_json(file, "data", "annotations") for file in files_of(source, ".json")[:10])


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all exports."""
    folder = source if source.is_dir() else source.parent
    index = PhotoIndex(folder, options.photos, exclude=options.output)
    items: list[Item] = []
    problems: list[str] = []
    notes: list[str] = []
    for file in files_of(source, ".json"):
        try:
            tasks = read_json(file)
        except DataError as error:
            problems.append(str(error))
            continue
        for number, task in enumerate(tasks if isinstance(tasks, list) else [tasks], start=1):
            where = f"{file}, task {task['id'] if isinstance(task, dict) and 'id' in task else number}"
            try:
                results = _results(task, where, notes)
                if results is not None:
                    items.append(_read_item(task, results, where, folder, options, index))
            except DataError as error:
                problems.append(str(error))
    names = {shape.label for item in items if isinstance(item.labels, tuple) for shape in item.labels}
    classes = tuple(sorted(name for name in names if name is not None))
    return Annotations(tuple(items), classes, problems=tuple(problems), notes=tuple(notes))


def _results(task: Any, where: str, notes: list[str]) -> list[Any] | None:
    """The results of a task's first annotation that is not canceled; None if it has none."""
    if not isinstance(task, dict) or not isinstance(task.get("annotations"), list):
        raise DataError(f'{where}: has no list "annotations"; export as "JSON", not "JSON-MIN"')
    done = [one for one in task["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")]
    if not done:
        notes.append(f"{where}: is not annotated, and is left out")
        return None
    if len(done) > 1:
        notes.append(f"{where}: has {len(done)} annotations; the first is taken")
    results = done[0].get("result")
    if not isinstance(results, list):
        raise DataError(f'{where}: its annotation has no list "result"; export again')
    return results


def _read_item(
    task: dict[str, Any], results: list[Any], where: str, folder: Path, options: ImportOptions, index: PhotoIndex
) -> Item:
    photo = _find_photo(task.get("data"), where, folder, options, index)
    regions = [one for one in results if isinstance(one, dict)]
    sizes = {size for one in regions if (size := as_size(one, "original_height", "original_width"))}
    if len(sizes) > 1:
        raise DataError(f"{where}: its regions belong to photos of several sizes {sorted(sizes)}; export again")
    if any(one.get("image_rotation") for one in regions):
        raise DataError(f"{where}: the photo was turned in Label Studio, which is not read; turn the file instead")
    size = next(iter(sizes), None)
    split, name = split_in(output_name(photo, options.photos, folder))
    return Item(
        name=name,
        photo=photo,
        origin=where,
        labels=tuple(_read_shapes(results, size)),
        version=hashlib.sha256(json.dumps(results).encode()).hexdigest(),
        split=split,
        size=size,
    )


def _find_photo(data: Any, where: str, folder: Path, options: ImportOptions, index: PhotoIndex) -> Path:
    """The photo of a task: the value of its data that names a picture, whose address may be that of a server."""
    values = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    names = [name for name in map(_path_in, values) if Path(name).suffix.lower() in PHOTO_EXTENSIONS]
    if not names:
        raise DataError(f"{where}: its data name no photo")
    places = [place for place in (options.photos, folder) if place]
    try:
        return index.find(names[0], *places)
    except DataError as error:
        plain = UPLOAD_PREFIX.sub("", names[0].rpartition("/")[2])
        if plain == names[0].rpartition("/")[2]:
            raise DataError(f"{where}: {error}") from error
    try:
        return index.find(plain, *places)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _path_in(address: str) -> str:
    """The path in an address; local storage has it in the query: /data/local-files/?d=photos/a.jpg."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return unquote(parse_qs(parts.query).get("d", [parts.path])[0])


def _read_shapes(results: list[Any], size: tuple[int, int] | None) -> Iterator[Shape]:
    """The shapes of the results; a region and its label may be two results with the same id."""
    labels: dict[str, list[str]] = {}
    for one in [one for one in results if isinstance(one, dict) and isinstance(one.get("value"), dict)]:
        for key in LABEL_KEYS:
            if isinstance(names := one["value"].get(key), list):
                labels.setdefault(str(one.get("id")), []).extend(map(clean_name, names))
    for number, one in enumerate(results, start=1):
        where = f"region {number}"
        value = one.get("value") if isinstance(one, dict) else None
        if not isinstance(one, dict) or not isinstance(value, dict):
            yield Shape(where, None, "dropped", data="has no value")
            continue
        kind = str(one.get("type") or "").removesuffix("labels")
        if one.get("type") in ("labels", "choices", "taxonomy", "textarea", "rating", "number"):
            continue  # says something about the photo or a region; it is no region itself
        names = list(dict.fromkeys(name for name in labels.get(str(one.get("id")), []) if name))
        if len(names) != 1:
            said = f"has several labels: {', '.join(names)}" if names else "has no label"
            yield Shape(where, None, "dropped", data=said)
            continue
        yield _read_shape(where, names[0], kind, value, size)


def _read_shape(where: str, label: str, kind: str, value: dict[str, Any], size: tuple[int, int] | None) -> Shape:
    try:
        if kind == "brush":
            if size is None or size[0] * size[1] > MAX_PIXELS:
                raise ValueError("has no original_width and original_height")
            return Shape(where, label, "mask", data=(decode_brush(value.get("rle"), size), (0, 0)))
        if kind == "polygon":
            return Shape(where, label, "polygon", (read_ring(value.get("points")),), whole=100)
        if kind in ("rectangle", "ellipse"):
            if size is None:
                raise ValueError("has no original_width and original_height")
            outline = _box(value, size) if kind == "rectangle" else _ellipse(value, size)
            return Shape(where, label, "polygon", (np.round(outline, 2),))
    except ValueError as error:
        return Shape(where, label, "dropped", data=str(error))
    return Shape(where, label, "dropped", data=f"is of type {kind[:40]!r}, which has no area")


def _box(value: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A box in percent, turned clockwise about its upper left corner; as (4, 2) in pixels."""
    left, top, width, height = _in_pixels(value, size, "x", "y", "width", "height")
    return np.array([left, top]) + np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ _turn(value)


def _ellipse(value: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """An ellipse in percent, turned clockwise about its center; as (180, 2) in pixels."""
    x, y, radius_x, radius_y = _in_pixels(value, size, "x", "y", "radiusX", "radiusY")
    return np.array([x, y]) + np.stack([radius_x * np.cos(ANGLES), radius_y * np.sin(ANGLES)], axis=1) @ _turn(value)


def _in_pixels(value: dict[str, Any], size: tuple[int, int], *names: str) -> list[float]:
    numbers = [value.get(name) for name in names]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise ValueError(f"{', '.join(names)} must be numbers")
    sides = (size[1], size[0], size[1], size[0])
    return [float(number) / 100 * side for number, side in zip(numbers, sides, strict=True)]  # type: ignore[arg-type]


def _turn(value: dict[str, Any]) -> np.ndarray:
    """The matrix that turns points (n, 2) clockwise as seen on the photo."""
    rotation = value.get("rotation") or 0
    if not isinstance(rotation, int | float) or not math.isfinite(rotation):
        raise ValueError("its rotation must be a number")
    cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    return np.array([[cosine, sine], [-sine, cosine]])


LABEL_STUDIO = Format("Label Studio JSON", recognize, read)
