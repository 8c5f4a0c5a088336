"""From image files to arrays: photos to RGB, label maps to training ids."""

import io

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.images import to_rgb
from fasseg_jax.data.samples import Sample

__all__ = [
    "UNKNOWN",
    "decode_labels",
    "decode_sample",
    "encode_labels",
    "file_ids",
    "label_dtype",
    "label_table",
    "map_labels",
]

UNKNOWN = -1  # in a label table: files must not contain this id
ORIENTATION = 0x0112  # the EXIF tag
ROTATED = (5, 6, 7, 8)  # its values that exchange width and height


def label_dtype(largest: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest dtype for labels from 0 to `largest`, at most 65535.

    Predictions pass the number of classes, so that 255 stays free for ignored pixels.
    """
    return np.uint8 if largest <= 255 else np.uint16


def file_ids(data: ConfigDict, classes: ClassTable) -> np.ndarray:
    """The id of each class in the data set's own label files, (K,) integers.

    Args:
      data: `config.data`.
      classes: the K classes; their `label_ids`, if they have any, are the answer.
    """
    if classes.label_ids:
        return np.array(classes.label_ids)
    return np.arange(len(classes)) + int(data.reduce_zero_label)


def label_table(num_classes: int, ignore_label: int, reduce_zero_label: bool = False) -> np.ndarray:
    """The training id of each id that a label file may hold.

    Args:
      num_classes: K.
      ignore_label: the label of ignored pixels, in files and in training.
      reduce_zero_label: files hold 0 for "other", which is ignored, and the classes begin at 1.

    Returns:
      (65536,) int32: training ids, or `UNKNOWN`.

    Raises:
      DataError: `ignore_label` is the id of a class, or too large.
    """
    first = int(reduce_zero_label)
    if not num_classes + first <= ignore_label <= 65535:
        raise DataError(
            f"config.data.ignore_label = {ignore_label} must be no class id and at most 65535: with {num_classes} "
            f"classes{' from 1 on' * first}, choose {255 if num_classes + first <= 255 else 65535}"
        )
    table = np.full(65536, UNKNOWN, np.int32)
    if reduce_zero_label:
        table[0] = ignore_label
    table[first : first + num_classes] = np.arange(num_classes)
    table[ignore_label] = ignore_label
    return table


def decode_sample(photo: bytes, labels: np.ndarray, name: str, labels_name: str) -> Sample:
    """Decode a photo to RGB, and turn it if its label map fits only then.

    The EXIF orientation says how a viewer turns the photo. It is applied only if the label map has the size of the
    turned photo and not of the stored one, because annotation tools differ in what they show.

    Args:
      photo: an image file.
      labels: the training ids, (H, W).
      name: names the sample, and the photo in messages.
      labels_name: names the label map in messages.

    Raises:
      DataError: the photo is no image, damaged, or of another size than the label map.
    """
    height, width = labels.shape
    try:
        with Image.open(io.BytesIO(photo)) as image:
            image.load()
            rotate = image.size != (width, height) and image.getexif().get(ORIENTATION) in ROTATED
            rgb = np.asarray(to_rgb(ImageOps.exif_transpose(image) if rotate else image, image.format))
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise DataError(f"{name}: cannot be read as a picture ({_reason(error)}); replace or remove it") from error
    if rgb.shape[:2] != labels.shape:
        raise DataError(
            f"{name} is {rgb.shape[1]}x{rgb.shape[0]} pixels, its label map {labels_name} "
            f"{width}x{height}: they must have the same size"
        )
    return Sample(rgb, labels, name)


def decode_labels(file: bytes, name: str) -> np.ndarray:
    """Decode a label map as it is stored: one channel of 8 or 16 bits, or the indices (never the colors) of a palette.

    Args:
      file: a PNG file.
      name: names the file in messages.

    Returns:
      (H, W) uint8 or uint16.

    Raises:
      DataError: the file is damaged, or of a kind whose ids are not certain.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            # Decoders scale the brightness of gray PNGs of 1, 2 or 4 bits: 1 of 4 bits becomes 17.
            scaled = image.mode == "1" or any(str(tile[3]).startswith("L;") for tile in image.tile)
            image.load()
            values = np.asarray(image)
    except Exception as error:
        raise DataError(f"{name}: cannot be read as a label map ({_reason(error)}); replace or remove it") from error
    if scaled or image.mode not in ("L", "P", "I;16"):
        kind = "a gray picture of fewer than 8 bits" if scaled else f"a picture of mode {image.mode}"
        raise DataError(
            f"{name}: is {kind}; save class ids as an 8-bit or 16-bit single-channel PNG or as one with a palette"
        )
    return values


def map_labels(values: np.ndarray, table: np.ndarray, name: str) -> np.ndarray:
    """Replace the ids of a file by training ids.

    Args:
      values: (H, W) uint8 or uint16, from `decode_labels`.
      table: from `label_table`.
      name: names the file in messages.

    Returns:
      (H, W), of the smallest dtype for the values of the table.

    Raises:
      DataError: the file holds unknown ids.
    """
    counts = np.bincount(values.ravel())
    unknown = np.flatnonzero((counts > 0) & (table[: len(counts)] == UNKNOWN))
    if len(unknown):
        known = np.flatnonzero(table != UNKNOWN)
        raise DataError(
            f"{name}: holds {_listing(unknown)}, but only {_ranges(known)} are known; correct the file, the "
            "table of classes, config.data.ignore_label or config.data.reduce_zero_label"
        )
    return table.astype(label_dtype(table.max()))[values]


def encode_labels(labels: np.ndarray) -> bytes:
    """Encode a label map, (H, W) uint8 or uint16, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "png")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    return "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__


def _listing(ids: np.ndarray) -> str:
    more = f" and {len(ids) - 8} others" if len(ids) > 8 else ""
    return f"the {'id' if len(ids) == 1 else 'ids'} {', '.join(map(str, ids[:8]))}{more}"


def _ranges(ids: np.ndarray) -> str:
    """Write ascending integers with their runs as "first to last"."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
