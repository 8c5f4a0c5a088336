"""Cityscapes polygons: *_polygons.json. https://github.com/mcordts/cityscapesScripts.

Names that are all Cityscapes' own become its 19 training classes, and its other names are ignored. Otherwise each name
is a class.
"""

import hashlib
import json
import re
from collections import defaultdict
from typing import Any

from fasseg_jax.data.classes import ClassTable, DataError, load_classes
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item, Shape, clean_name
from fasseg_jax.importing.json_files import as_size, field, looks_like_json, read_json, read_ring
from fasseg_jax.importing.photos import PhotoIndex, files_of, output_name, split_in
from fasseg_jax.runtime.files import Path

__all__ = ["CITYSCAPES_POLYGONS"]

OTHER_NAMES = {  # of Cityscapes, which its training leaves out
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "parking"),
    *("rail track", "guard rail", "bridge", "tunnel", "polegroup", "caravan", "trailer", "license plate"),
}
NOT_DRAWN = "license plate"  # Cityscapes' own masks leave it to the car
ENDING = re.compile(r"(_gt(Fine|Coarse))?_polygons$")
PHOTO_ENDING = "_leftImg8bit"


def recognize(source: Path) -> bool:
    """Whether one of the first JSON files has objects and the size of a photo."""
    return any(looks_like_json(file, "objects", "imgHeight") for file in files_of(source, ".json")[:10])


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all files of polygons."""
    folder = source if source.is_dir() else source.parent
    photos: dict[str, list[Path]] = defaultdict(list)
    for path in PhotoIndex(folder, options.photos, exclude=options.output).paths:
        photos[path.stem.removesuffix(PHOTO_ENDING)].append(path)
    contents: list[tuple[Path, Any]] = []
    problems: list[str] = []
    for file in files_of(source, ".json"):
        try:
            content = read_json(file)
            field(content, "objects", list, f"{file} is no Cityscapes file")
            contents.append((file, content))
        except DataError as error:
            problems.append(str(error))
    table, notes = _known_classes(contents)
    items: list[Item] = []
    for file, content in contents:
        try:
            items.append(_read_item(file, content, folder, options, photos, table))
        except DataError as error:
            problems.append(str(error))
    if table is not None:
        return Annotations(tuple(items), table.names, table.palette, tuple(problems), notes)
    names = {shape.label for item in items if isinstance(item.labels, tuple) for shape in item.labels}
    classes = tuple(sorted(name for name in names if name is not None))
    return Annotations(tuple(items), classes, problems=tuple(problems), notes=notes)


def _known_classes(contents: list[tuple[Path, Any]]) -> tuple[ClassTable | None, tuple[str, ...]]:
    """Cityscapes' training classes if all names are its own, and what to say."""
    table = load_classes("cityscapes")
    objects = [one for _, content in contents for one in content["objects"] if isinstance(one, dict)]
    names = {clean_name(one.get("label")) for one in objects if not one.get("deleted")}
    if all(name in OTHER_NAMES or _singular(name, table) in table.names for name in names):
        return table, ("the names are Cityscapes' own: its 19 classes are trained, and its other names are ignored",)
    return None, ()


def _singular(name: str, table: ClassTable) -> str:
    """Return "car" for "cargroup", an outline around cars that are not told apart."""
    return name if name in table.names or not name.endswith("group") else name.removesuffix("group")


def _read_item(
    file: Path,
    content: Any,
    folder: Path,
    options: ImportOptions,
    photos: dict[str, list[Path]],
    table: ClassTable | None,
) -> Item:
    fitting = photos.get(ENDING.sub("", file.stem), [])
    if len(fitting) != 1:
        name = f"{ENDING.sub('', file.stem)}{PHOTO_ENDING}.png"
        said = (
            f"several photos are for it: {', '.join(map(str, fitting[:3]))}" if fitting else f"there is no photo {name}"
        )
        raise DataError(f"{file}: {said}; name the folder of the photos by --photos")
    split, name = split_in(output_name(fitting[0], options.photos, folder))
    size = as_size(content, "imgHeight", "imgWidth")
    objects = [(number, one) for number, one in enumerate(content["objects"], start=1)]
    return Item(
        name=name,
        photo=fitting[0],
        origin=str(file),
        labels=tuple(_read_shape(one, number, table) for number, one in objects if not _is_deleted(one)),
        version=hashlib.sha256(json.dumps([content["objects"], size]).encode()).hexdigest(),
        split=split or split_in(file.relative_to(folder).as_posix())[0],
        size=size,
    )


def _is_deleted(one: Any) -> bool:
    return isinstance(one, dict) and bool(one.get("deleted"))


def _read_shape(one: Any, number: int, table: ClassTable | None) -> Shape:
    where = f"object {number}"
    name = clean_name(one.get("label") or "") if isinstance(one, dict) else ""
    if not name:
        return Shape(where, None, "dropped", data="has no label")
    label: str | None = name
    if table is not None:
        if name == NOT_DRAWN:
            return Shape(where, name, "dropped", data="Cityscapes' own masks do not draw it")
        label = None if name in OTHER_NAMES else _singular(name, table)
    try:
        return Shape(where, label, "polygon", (read_ring(one.get("polygon")),))
    except ValueError as error:
        return Shape(where, label, "dropped", data=str(error))


CITYSCAPES_POLYGONS = Format("Cityscapes polygons", recognize, read, unlabeled="ignore")
