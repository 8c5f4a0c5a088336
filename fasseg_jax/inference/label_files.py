"""Predictions as files of annotation tools, to be corrected there and imported again (`fasseg_jax.importing`)."""

import csv
import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any, TextIO

from jaxtyping import UInt
from numpy import ndarray

from fasseg_jax.data.classes import ClassTable, write_classes
from fasseg_jax.inference.outlines import Outline, find_outlines
from fasseg_jax.runtime.csv_text import csv_text
from fasseg_jax.runtime.files import Path, write_atomically

__all__ = ["LABEL_FORMATS", "LabelFiles"]

LABEL_FORMATS = ("labelme", "coco")
COCO_FILE = "annotations.json"
LIST = "to_correct.csv"


@dataclasses.dataclass(frozen=True)
class _Photo:
    """A photo that is done.

    Attributes:
      path: of the photo.
      entry: what a COCO file says of it, still without id.
      annotations: its annotations in a COCO file, still without ids: compressed JSON, because those of thousands of
        photos wait for the end.
    """

    path: Path
    entry: dict[str, Any]
    annotations: bytes = b""


class LabelFiles:
    """Writes the predictions of photos as polygons.

    Polygons enclose also what lies within a region (see `outlines`), and a later polygon covers those before it.

    - "labelme" writes OUTPUT/labelme/NAME.json and a copy of the photo beside it, as labelme opens them.
    - "coco" writes OUTPUT/coco/annotations.json when all photos are done, the least certain photo first.

    OUTPUT/to_correct.csv lists the photos, the least certain first; OUTPUT/classes.csv keeps ids and colors of the
    classes. What cannot be written raises a `WriteError`.
    """

    def __init__(self, kind: str, output: Path, classes: ClassTable):
        """`kind` is one of `LABEL_FORMATS`, `output` the folder of the results."""
        self._kind, self._output, self._classes = kind, output, classes
        self._photos: list[_Photo] = []

    @property
    def folder(self) -> Path:
        """The folder of the files for the tool."""
        return self._output / self._kind

    def add(self, photo: Path, name: Path, file_name: str, labels: UInt[ndarray, "H W"], uncertainty: float) -> None:
        """Take the prediction of a photo.

        Args:
          photo: the file.
          name: of its results, below the output folder.
          file_name: the photo's path below the folder of the input, with "/".
          labels: class ids.
          uncertainty: of the photo, see `Segmentation`.
        """
        height, width = labels.shape
        entry = {"file_name": file_name, "height": height, "width": width, "uncertainty": round(uncertainty, 6)}
        outlines = find_outlines(labels)
        if self._kind == "labelme":
            _copy(photo, self.folder / f"{name}{photo.suffix}")
            content = _labelme_content(f"{name.name}{photo.suffix}", outlines, entry, self._classes)
            with write_atomically(self.folder / f"{name}.json") as partial, _open_json(partial) as file:
                json.dump(content, file, ensure_ascii=False)
            self._photos.append(_Photo(photo, entry))
        else:
            annotations = json.dumps([_coco_annotation(outline) for outline in outlines])
            self._photos.append(_Photo(photo, entry, zlib.compress(annotations.encode(), level=1)))

    def finish(self) -> None:
        """Write what needs all photos."""
        self._photos.sort(key=lambda photo: -photo.entry["uncertainty"])
        if self._kind == "coco":
            with write_atomically(self.folder / COCO_FILE) as partial, _open_json(partial) as file:
                _write_coco(file, self._photos, self._classes)
        write_classes(self._output / "classes.csv", self._classes)
        with (
            write_atomically(self._output / LIST) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as lines,
        ):
            writer = csv.writer(lines)
            writer.writerow(["photo", "uncertainty"])
            writer.writerows([csv_text(str(photo.path)), photo.entry["uncertainty"]] for photo in self._photos)


def _copy(photo: Path, copy: Path) -> None:
    content = photo.read_bytes()
    with write_atomically(copy) as partial:
        partial.write_bytes(content)


def _open_json(path: Path) -> TextIO:
    """Open a file to write JSON; bytes of file names that are no UTF-8 become JSON's escapes."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def _labelme_content(
    photo: str, outlines: Sequence[Outline], entry: dict[str, Any], classes: ClassTable
) -> dict[str, Any]:
    """The content of a labelme file; `photo` is the path of the photo from the file's folder."""
    shapes = [
        {
            "label": classes.names[outline.class_id],
            "points": outline.centers.astype(float).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for outline in outlines
    ]
    return {
        "version": "5.5.0",  # of labelme, whose files have not changed since
        "flags": {},
        "shapes": shapes,
        "imagePath": photo,
        "imageData": None,
        "imageHeight": entry["height"],
        "imageWidth": entry["width"],
        "uncertainty": entry["uncertainty"],
    }


def _coco_annotation(outline: Outline) -> dict[str, Any]:
    return {
        "category_id": outline.class_id + 1,
        "segmentation": [outline.corners.ravel().tolist()],
        "area": outline.area,
        "bbox": list(outline.box),
        "iscrowd": 0,
    }


def _write_coco(file: TextIO, photos: Sequence[_Photo], classes: ClassTable) -> None:
    """Write a COCO file photo by photo. All ids count from 1, because some programs take 0 for nothing."""
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(classes.names, start=1)]
    images = [{"id": image_id, **photo.entry} for image_id, photo in enumerate(photos, start=1)]
    file.write(f'{{"categories": {json.dumps(categories, ensure_ascii=False)},\n')
    file.write(f'"images": {json.dumps(images, ensure_ascii=False)},\n"annotations": [')
    number = 0
    for image_id, photo in enumerate(photos, start=1):
        for annotation in json.loads(zlib.decompress(photo.annotations)):
            separator, number = "," if number else "", number + 1
            file.write(f"{separator}\n{json.dumps({'id': number, 'image_id': image_id, **annotation})}")
    file.write("\n]}\n")
