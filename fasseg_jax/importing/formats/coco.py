"""COCO JSON: polygons, RLE and crowds. https://cocodataset.org/#format-data."""

import hashlib
import json
from collections import defaultdict
from typing import Any

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.folder_words import split_of
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item, Shape, clean_name, load_library
from fasseg_jax.importing.json_files import as_id, as_size, field, looks_like_json, read_json, read_ring
from fasseg_jax.importing.photos import PhotoIndex, files_of, output_name, split_in
from fasseg_jax.runtime.files import Path

__all__ = ["COCO", "file_split", "merge_classes", "read_categories"]


def recognize(source: Path) -> bool:
    """Whether one of the first JSON files has images, categories and annotations with outlines."""
    return any(_is_coco(file) for file in files_of(source, ".json")[:10])


def _is_coco(file: Path) -> bool:
    return looks_like_json(file, "images", "annotations", "categories") and not looks_like_json(
        file, "annotations.segments_info"
    )


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all files; a file whose name holds "train" or "val" is a split."""
    load_library("pycocotools.mask")
    folder = source if source.is_dir() else source.parent
    index = PhotoIndex(folder, options.photos, exclude=options.output)
    items: list[Item] = []
    problems: list[str] = []
    notes: list[str] = []
    tables: list[dict[str, str]] = []
    for file in files_of(source, ".json"):
        try:
            content = read_json(file)
            categories = read_categories(content, file)
            images = field(content, "images", list, str(file))
            annotations = field(content, "annotations", list, str(file))
        except DataError as error:
            problems.append(str(error))
            continue
        tables.append(categories)
        by_image = _by_image(annotations, images, file, problems)
        for number, image in enumerate(images, start=1):
            try:
                items.append(_read_item(image, number, by_image, categories, file, folder, options, index))
            except DataError as error:
                problems.append(str(error))
    return Annotations(tuple(items), merge_classes(tables), problems=tuple(problems), notes=tuple(notes))


def read_categories(content: Any, file: Path) -> dict[str, str]:
    """Category id -> name, in the order of the ids.

    Raises:
      DataError: the file has none, or one without id or name.
    """
    found: list[tuple[int, str]] = []
    for number, category in enumerate(field(content, "categories", list, str(file)), start=1):
        where = f"{file}, category {number}"
        name = clean_name(field(category, "name", str, where))
        if not name:
            raise DataError(f"{where}: the name is empty")
        found.append((field(category, "id", int, where), name))
    ids = [class_id for class_id, _ in found]
    if len(set(ids)) < len(ids):
        raise DataError(f"{file}: two categories have the same id; give each its own")
    return {as_id(class_id): name for class_id, name in sorted(found)}


def merge_classes(tables: list[dict[str, str]]) -> tuple[str, ...]:
    """The class names of several files, each once."""
    return tuple(dict.fromkeys(name for table in tables for name in table.values()))


def file_split(file: Path, file_name: str) -> str | None:
    """The split that the name of an annotation file says, or the folder of a photo, or that of the file."""
    words = file.stem.lower().replace("-", "_").replace(".", "_").split("_")
    for word in [word.rstrip("0123456789") for word in words]:
        if split := split_of(word):
            return split
    return split_in(file_name)[0] or split_of(file.parent.name)


def _by_image(annotations: list, images: list, file: Path, problems: list[str]) -> dict[str, list[tuple[int, Any]]]:
    """Annotations with their numbers, by image id."""
    known = {as_id(image.get("id")) for image in images if isinstance(image, dict)}
    by_image: dict[str, list[tuple[int, Any]]] = defaultdict(list)
    for number, annotation in enumerate(annotations, start=1):
        image_id = as_id(annotation.get("image_id")) if isinstance(annotation, dict) else ""
        if image_id in known:
            by_image[image_id].append((number, annotation))
        else:
            problems.append(
                f"{file}, annotation {number}: belongs to no image of the file (image_id {image_id[:40]!r})"
            )
    return by_image


def _read_item(
    image: Any,
    number: int,
    by_image: dict[str, list[tuple[int, Any]]],
    categories: dict[str, str],
    file: Path,
    folder: Path,
    options: ImportOptions,
    index: PhotoIndex,
) -> Item:
    where = f"{file}, image {number}"
    file_name = field(image, "file_name", str, where)
    try:
        photo = index.find(file_name, *([options.photos] if options.photos else []), file.parent, folder)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    size = as_size(image, "height", "width")
    annotations = by_image.get(as_id(image.get("id")), [])
    text = json.dumps([annotations, size])
    return Item(
        name=split_in(output_name(photo, options.photos, folder))[1],
        photo=photo,
        origin=f"{file}, {file_name}",
        labels=tuple(_read_shape(annotation, number, categories, size) for number, annotation in annotations),
        version=hashlib.sha256(text.encode()).hexdigest(),
        split=file_split(file, file_name),
        size=size,
    )


def _read_shape(
    annotation: dict[str, Any], number: int, categories: dict[str, str], size: tuple[int, int] | None
) -> Shape:
    where = f"annotation {number}"
    category = as_id(annotation.get("category_id"))
    if category not in categories:
        return Shape(where, None, "dropped", data=f"its category {category[:40]!r} is not in the file")
    label = categories[category]
    outline = annotation.get("segmentation")
    try:
        if isinstance(outline, dict):
            return Shape(where, label, "rle", data=_read_rle(outline))
        if isinstance(outline, list) and outline:
            return Shape(where, label, "coco_polygon", tuple(_read_flat_ring(ring) for ring in outline))
    except ValueError as error:
        return Shape(where, label, "dropped", data=str(error))
    box = "; it has a box only" if annotation.get("bbox") else ""
    return Shape(where, label, "dropped", data=f"has no segmentation{box}")


def _read_flat_ring(ring: Any) -> np.ndarray:
    """[x, y, x, y, ...] as (n, 2)."""
    if not isinstance(ring, list) or len(ring) % 2:
        raise ValueError("a polygon is no list of x, y, x, y, ...")
    return read_ring([ring[start : start + 2] for start in range(0, len(ring), 2)])


def _read_rle(outline: dict[str, Any]) -> dict[str, Any]:
    """An RLE as pycocotools decodes it; checked first, because its C code trusts the counts."""
    size, counts = outline.get("size"), outline.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side < 10**6 for side in size):
        raise ValueError("the size of its RLE is no [height, width]")
    library = load_library("pycocotools.mask")
    if isinstance(counts, str):
        try:
            counts = _uncompressed(counts)
        except IndexError:
            raise ValueError("the counts of its RLE end too early") from None
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("the counts of its RLE are no whole numbers from 0")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"the counts of its RLE are {sum(counts)} pixels, its size is {size[0]}x{size[1]}")
    return library.frPyObjects({"size": size, "counts": counts}, *size)


def _uncompressed(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE: six bits a character, each run less the one before the last."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        while True:
            bits = ord(text[position]) - 48
            position += 1
            if not 0 <= bits < 64 or shift > 60:
                raise ValueError("the counts of its RLE hold a character that is none of COCO's")
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                break
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


COCO = Format("COCO JSON", recognize, read)
