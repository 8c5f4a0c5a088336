"""YOLO segmentation: data.yaml, and a text file of outlines for each photo. https://docs.ultralytics.com/datasets/segment."""

import hashlib
from typing import Any

import numpy as np

from fasseg_jax.data.class_files import read_yaml, yaml_names
from fasseg_jax.data.classes import DataError, read_table_text
from fasseg_jax.data.folder_words import split_of
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item, Shape
from fasseg_jax.importing.photos import PhotoIndex, output_name
from fasseg_jax.runtime.files import Path, list_files

__all__ = ["YOLO"]


def recognize(source: Path) -> bool:
    """Whether there is a YAML file with names and splits."""
    try:
        return bool(_find_yaml(source))
    except DataError:
        return False


def _find_yaml(source: Path) -> tuple[Path, dict[str, Any]] | None:
    files = list_files(source) if source.is_dir() else [source]
    for file in [file for file in files if file.suffix.lower() in (".yaml", ".yml")][:10]:
        content = read_yaml(file)
        if isinstance(content, dict) and "names" in content and any(split_of(str(key)) for key in content):
            return file, content
    return None


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read all splits of data.yaml."""
    found = _find_yaml(source)
    if found is None:
        raise DataError(f"{source}: holds no data.yaml with names and train; YOLO's class names are in it")
    file, content = found
    classes = yaml_names(content["names"], file)
    items: list[Item] = []
    problems: list[str] = []
    notes: list[str] = []
    for key, value in content.items():
        split = split_of(str(key))
        if split is None or not value:
            continue
        for entry in value if isinstance(value, list) else [value]:
            try:
                photos, base = _photos(file, content.get("path"), str(entry))
            except DataError as error:
                problems.append(f"{file}, {key}: {error}")
                continue
            for photo in photos:
                try:
                    items.append(_read_item(photo, base, split, classes, notes))
                except DataError as error:
                    problems.append(str(error))
    problems += _without_photo(items)
    return Annotations(tuple(items), classes, problems=tuple(problems), notes=tuple(notes))


def _photos(file: Path, base: Any, entry: str) -> tuple[list[Path], Path]:
    """The photos of an entry of data.yaml, which is a folder or a list of files, and the folder that holds them."""
    below = entry
    while below.startswith("../"):  # Roboflow writes "../train/images" for a folder beside the file
        below = below[3:]
    bases = [file.parent / str(base), file.parent] if base else [file.parent]
    places = [*(each / entry for each in bases), *(each / below for each in bases)]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise DataError(f"there is no {places[-1]}; correct the path")
    if place.is_dir():
        return PhotoIndex(place).paths, place
    lines = [line.strip() for line in read_table_text(place).splitlines() if line.strip()]
    index = PhotoIndex(place.parent)
    return [index.find(line.removeprefix("./"), place.parent) for line in lines], place.parent


def _label_file(photo: Path) -> Path:
    """The text file of a photo: the last folder "images" of its path is "labels"."""
    parts = list(photo.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_item(photo: Path, base: Path, split: str, classes: tuple[str, ...], notes: list[str]) -> Item:
    file = _label_file(photo)
    text = ""
    if file.exists():
        text = read_table_text(file)
    else:
        notes.append(f"{photo}: has no {file}; all of it is unlabeled, as YOLO trains it")
    shapes = [
        _read_line(line, number, classes) for number, line in enumerate(text.splitlines(), start=1) if line.strip()
    ]
    return Item(
        name=output_name(photo, base),
        photo=photo,
        origin=str(file),
        labels=tuple(shapes),
        version=hashlib.sha256(repr((text, classes)).encode("utf-8", "surrogatepass")).hexdigest(),
        split=split,
    )


def _read_line(line: str, number: int, classes: tuple[str, ...]) -> Shape:
    where = f"line {number}"
    class_id, *texts = line.split()
    if not class_id.isdecimal() or int(class_id[:9]) >= len(classes):
        return Shape(where, None, "dropped", data=f"its class {class_id[:40]!r} is none of 0 to {len(classes) - 1}")
    label = classes[int(class_id)]
    try:
        numbers = np.array([float(text) for text in texts])
    except ValueError:
        return Shape(where, label, "dropped", data="holds something that is no number")
    if len(numbers) == 4:
        return Shape(where, label, "dropped", data="is a box, not an outline")
    if len(numbers) % 2:
        return Shape(where, label, "dropped", data=f"holds {len(numbers)} numbers, which are no pairs x y")
    return Shape(where, label, "polygon", (numbers.reshape(-1, 2),), whole=1)


def _without_photo(items: list[Item]) -> list[str]:
    """A line for each label file whose photo is not there."""
    known = {_label_file(item.photo) for item in items if isinstance(item.photo, Path)}
    folders = {file.parent for file in known if "labels" in file.parts and file.parent.is_dir()}
    files = [file for folder in sorted(folders) for file in sorted(folder.glob("*.txt"))]
    return [f"{file}: there is no photo for it in any split; add it" for file in files if file not in known]


YOLO = Format("YOLO segmentation", recognize, read)
