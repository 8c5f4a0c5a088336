"""COCO panoptic: a JSON file of segments, and PNGs whose colors are their ids. https://cocodataset.org/#format-data."""

import hashlib
import json
from typing import Any

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.importing.annotations import IGNORED, Annotations, Format, ImportOptions, Item
from fasseg_jax.importing.formats.coco import file_split, merge_classes, read_categories
from fasseg_jax.importing.json_files import as_id, field, looks_like_json, read_json
from fasseg_jax.importing.mask_files import read_rgb
from fasseg_jax.importing.photos import PhotoIndex, files_of, output_name, split_in
from fasseg_jax.runtime.files import Path

__all__ = ["COCO_PANOPTIC"]


def recognize(source: Path) -> bool:
    """Whether the annotations of one of the first JSON files have segments."""
    needed = ("images", "categories", "annotations.segments_info")
    return any(looks_like_json(file, *needed) for file in files_of(source, ".json")[:10])


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all files; a file whose name holds "train" or "val" is a split."""
    folder = source if source.is_dir() else source.parent
    index = PhotoIndex(folder, options.photos, exclude=options.output)
    files = files_of(source, ".json")
    contents: list[tuple[Path, Any, dict[str, str]]] = []
    problems: list[str] = []
    for file in files:
        try:
            content = read_json(file)
            field(content, "images", list, str(file))
            field(content, "annotations", list, str(file))
            contents.append((file, content, read_categories(content, file)))
        except DataError as error:
            problems.append(str(error))
    classes = merge_classes([categories for _, _, categories in contents])
    class_ids = {name: index for index, name in enumerate(classes)}
    items: list[Item] = []
    notes: list[str] = []
    for file, content, categories in contents:
        images = {as_id(image.get("id")): image for image in content["images"] if isinstance(image, dict)}
        table = {category: class_ids[name] for category, name in categories.items()}
        annotated = set()
        for number, annotation in enumerate(content["annotations"], start=1):
            where = f"{file}, annotation {number}"
            try:
                image = images.get(as_id(field(annotation, "image_id", (int, str), where)))
                annotated.add(as_id(annotation["image_id"]))
                items.append(_read_item(annotation, image, where, table, file, folder, options, index))
            except DataError as error:
                problems.append(str(error))
        bare = [image.get("file_name") for image_id, image in images.items() if image_id not in annotated]
        notes += [f"{file}: the photo {name!r} has no annotation, and is left out" for name in bare]
    return Annotations(tuple(items), classes, problems=tuple(problems), notes=tuple(notes))


def _read_item(
    annotation: Any,
    image: Any,
    where: str,
    table: dict[str, int],
    file: Path,
    folder: Path,
    options: ImportOptions,
    index: PhotoIndex,
) -> Item:
    if image is None:
        raise DataError(f"{where}: its image_id is that of no image of the file")
    file_name = field(image, "file_name", str, where)
    mask = _find_mask(field(annotation, "file_name", str, where), file, index, where)
    try:
        near = [options.photos] if options.photos else []
        photo = index.find(file_name, *near, *(path for path in (file.parent, folder) if path / file_name != mask))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    segments: dict[int, int] = {}
    for number, segment in enumerate(field(annotation, "segments_info", list, where), start=1):
        category = as_id(field(segment, "category_id", (int, str), f"{where}, segment {number}"))
        if category not in table:
            raise DataError(f"{where}, segment {number}: its category {category[:40]!r} is not in the file")
        segments[field(segment, "id", int, f"{where}, segment {number}")] = table[category]
    return Item(
        name=split_in(output_name(photo, options.photos, folder))[1],
        photo=photo,
        origin=f"{file}, {mask.name}",
        labels=lambda: _read_mask(mask, segments),
        version=hashlib.sha256(json.dumps([file_version(mask), sorted(segments.items())]).encode()).hexdigest(),
        split=file_split(file, file_name),
    )


def _find_mask(name: str, file: Path, index: PhotoIndex, where: str) -> Path:
    """The PNG of segments: in the folder of the JSON file's name, beside it, or anywhere if its name is unique."""
    for folder in (file.with_suffix(""), file.parent):
        if (folder / name).is_file():
            return folder / name
    try:
        return index.find(name)
    except DataError as error:
        raise DataError(f"{where}: its PNG is not in {file.with_suffix('')}: {error}") from error


def _read_mask(mask: Path, segments: dict[int, int]) -> tuple[np.ndarray, list[str]]:
    """Classes of the segments, (H, W); the id 0 is ignored. Notes name the segments that have no pixel."""
    rgb = read_rgb(mask).astype(np.int32)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    used, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    unknown = [
        (segment, count)
        for segment, count in zip(used.tolist(), counts, strict=True)
        if segment and segment not in segments
    ]
    if unknown:
        listing = ", ".join(f"{segment} ({count} pixels)" for segment, count in unknown[:3])
        raise DataError(f"{mask}: holds {len(unknown)} segments that the JSON file does not list: {listing}")
    table = np.array([segments.get(segment, IGNORED) if segment else IGNORED for segment in used.tolist()], np.int32)
    absent = sorted(segments.keys() - set(used.tolist()))
    return table[inverse].reshape(ids.shape), [f"dropped segment {segment}: covers no pixel" for segment in absent]


COCO_PANOPTIC = Format("COCO panoptic", recognize, read)
