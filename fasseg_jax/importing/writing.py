"""Writes one sample of an import: its photo and its label map."""

import dataclasses
import io

import numpy as np
from PIL import Image

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.images import PHOTO_EXTENSIONS, TURN, as_stored, load_upright, open_image, reason
from fasseg_jax.data.labels import encode_labels, label_dtype
from fasseg_jax.importing.annotations import IGNORED, UNLABELED, Item
from fasseg_jax.importing.plan import Target
from fasseg_jax.importing.shapes import paint
from fasseg_jax.runtime.files import Path, require_regular_file, write_atomically

__all__ = ["LabelRules", "Written", "write_sample"]

EXTENSIONS = {  # Pillow's name of a format -> the extension of photos whose own extension says nothing
    **{"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif"},
    **{"AVIF": ".avif", "JPEG2000": ".jp2", "PPM": ".ppm"},
}


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """How labels become ids.

    Attributes:
      class_ids: id of each class name.
      source_classes: names of the indices in label maps of readers.
      background: id of pixels that no shape covers, or None if they are ignored.
      overlap: see `ImportOptions`.
      orientation: see `ImportOptions`.
    """

    class_ids: dict[str, int]
    source_classes: tuple[str, ...]
    background: int | None
    overlap: str
    orientation: str

    @property
    def ignore_label(self) -> int:
        """The label of ignored pixels."""
        return 255 if len(self.class_ids) <= 255 else 65535


@dataclasses.dataclass(frozen=True)
class Written:
    """Files that were written, with their sizes in bytes, and what there is to say."""

    files: dict[str, int]
    notes: tuple[str, ...]


def write_sample(target: Target, folder: Path, rules: LabelRules) -> Written:
    """Write a sample below images/SPLIT and annotations/SPLIT.

    The label map lies on the photo as `open_photo` shows it, turned by its EXIF orientation.

    Raises:
      DataError: the photo or its labels cannot be read, or do not fit each other.
      WriteError: the files cannot be written.
    """
    item = target.item
    photo = _read_photo(item)
    try:
        with open_image(io.BytesIO(photo)) as image:
            upright, exif = load_upright(image)
            stored_size = as_stored(upright, exif).size[::-1]
            upright_size, kind = upright.size[::-1], image.format or ""
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise DataError(f"{_photo_name(item)}: cannot be read as a photo ({reason(error)}); replace it") from error
    labels, notes = _labels(item, upright_size, stored_size, exif, rules)
    values = np.where(labels < 0, rules.ignore_label, labels).astype(label_dtype(len(rules.class_ids)))
    suffix = Path(item.name).suffix
    if suffix.lower() not in PHOTO_EXTENSIONS or not isinstance(item.photo, Path):
        suffix = EXTENSIONS.get(kind, "")
        if not suffix:
            raise DataError(f"{_photo_name(item)}: is a {kind} picture; save it as PNG or JPEG")
    contents = {
        f"annotations/{target.key}.png": encode_labels(values),
        f"images/{target.key}{suffix}": photo,  # last, so that no photo ever lacks its labels
    }
    for name, content in contents.items():
        with write_atomically(folder / name) as partial:
            partial.write_bytes(content)
    return Written({name: len(content) for name, content in contents.items()}, (*item.notes, *notes))


def _read_photo(item: Item) -> bytes:
    try:
        if isinstance(item.photo, Path):
            require_regular_file(item.photo)
            return item.photo.read_bytes()
        return item.photo()
    except OSError as error:
        raise DataError(f"{_photo_name(item)}: cannot be read ({error.strerror}); replace it") from error


def _labels(
    item: Item, upright: tuple[int, int], stored: tuple[int, int], exif: int, rules: LabelRules
) -> tuple[np.ndarray, list[str]]:
    """Labels on the upright photo, (H, W) of ids or `IGNORED`, and notes."""
    values, said = (None, []) if isinstance(item.labels, tuple) else item.labels()
    size = item.size if values is None else (values.shape[0], values.shape[1])
    on_stored = exif != 1 and (
        rules.orientation == "stored"
        or (rules.orientation == "auto" and size is not None and upright != size == stored)
    )
    expected = stored if on_stored else upright
    if size is not None and size != expected:
        raise DataError(
            f"{item.origin}: its labels are {size[1]}x{size[0]} pixels, the photo {_photo_name(item)} "
            f"{expected[1]}x{expected[0]}; give the photo that was annotated"
            f"{' (EXIF turns it; see --orientation)' if exif != 1 else ''}"
        )
    if values is None:
        labels, notes = paint(item.labels, rules.class_ids, expected, rules.overlap)  # type: ignore[arg-type]
        labels[labels == UNLABELED] = IGNORED if rules.background is None else rules.background
    else:
        labels, notes = _rename(values, rules)
        notes = [*said, *notes]
    if on_stored:
        notes.append("labels are drawn on the photo as it is stored; they are turned with it")
        labels = np.asarray(Image.fromarray(labels).transpose(TURN[exif]))
    return labels, notes


def _rename(values: np.ndarray, rules: LabelRules) -> tuple[np.ndarray, list[str]]:
    """Replace indices of the reader's classes by ids."""
    table = np.array([*(rules.class_ids.get(name, IGNORED) for name in rules.source_classes), IGNORED], np.int32)
    missing = [name for name in rules.source_classes if name not in rules.class_ids]
    used = {rules.source_classes[index] for index in np.unique(values) if index >= 0}
    notes = [f"pixels of the class {name!r}, which is not listed, are ignored" for name in missing if name in used]
    return table[values], notes  # IGNORED is the last entry


def _photo_name(item: Item) -> str:
    return str(item.photo) if isinstance(item.photo, Path) else f"the photo of {item.origin}"
