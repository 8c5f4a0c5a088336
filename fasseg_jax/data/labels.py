"""From image files to arrays: photos to RGB, label maps to training ids."""

import io

import numpy as np
from PIL import Image, ImageOps

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.images import to_rgb
from fasseg_jax.data.samples import Sample

__all__ = ["UNKNOWN", "decode_labels", "decode_sample", "encode_labels", "label_dtype", "label_table", "map_labels"]

UNKNOWN = -1  # in a label table: an id that files must not contain

ROTATED = (5, 6, 7, 8)  # the EXIF orientations that exchange width and height


def label_dtype(largest: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type for labels from 0 to `largest`, of which files hold at most 65535.

    Predictions pass the number of classes, which keeps 255 free for ignored pixels.
    """
    return np.uint8 if largest <= 255 else np.uint16


def label_table(num_classes: int, ignore_label: int, reduce_zero_label: bool = False) -> np.ndarray:
    """The training id of each id that a label file may hold.

    Args:
      num_classes: K.
      ignore_label: the value of ignored pixels, in files as in training.
      reduce_zero_label: files hold 0 for "other" (ignored) and classes from 1.

    Returns:
      (65536,) int32: training ids, or `UNKNOWN`.

    Raises:
      DataError: `ignore_label` is the id of a class.
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
    """Decode a photo to RGB, turned so that its label map fits.

    The EXIF orientation, which says how a viewer turns the photo, is applied only where the label map has the size of
    the turned photo and not the stored one: annotation tools differ in what they show.

    Args:
      photo: content of an image file.
      labels: its training ids, (H, W).
      name: what the sample, and in messages the photo, is called.
      labels_name: what messages call the label map.

    Raises:
      DataError: not a picture, damaged, or of another size than the label map.
    """
    try:
        with Image.open(io.BytesIO(photo)) as image:
            image.load()
            height, width = labels.shape
            if image.size != (width, height) and _is_rotated(image):
                image = ImageOps.exif_transpose(image)
            rgb = np.asarray(to_rgb(image, image.format))
    except Exception as error:  # a damaged file raises nearly anything in a decoder
        raise DataError(f"{name}: cannot be read as a picture ({_reason(error)}); replace or remove it") from error
    if rgb.shape[:2] != labels.shape:
        raise DataError(
            f"{name} is {rgb.shape[1]}x{rgb.shape[0]} pixels, its label map {labels_name} "
            f"{width}x{height}: they must have the same size"
        )
    return Sample(rgb, labels, name)


def _is_rotated(image: Image.Image) -> bool:
    return image.getexif().get(0x0112) in ROTATED  # the tag "Orientation"


def decode_labels(file: bytes, name: str) -> np.ndarray:
    """Decode a label map as it is stored: one channel of 8 or 16 bits, or the indices (never the colours) of a palette.

    Args:
      file: content of a PNG file.
      name: what messages call it.

    Returns:
      (H, W) uint8 or uint16.

    Raises:
      DataError: damaged, or of a kind whose ids are not certain.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            # Grey PNGs of 1, 2 or 4 bits are brightnesses: decoders scale them, 1 of 4 bits becoming 17.
            scaled = image.mode == "1" or any(str(tile[3]).startswith("L;") for tile in image.tile)
            image.load()
            values = np.asarray(image)
    except Exception as error:
        raise DataError(f"{name}: cannot be read as a label map ({_reason(error)}); replace or remove it") from error
    if scaled or image.mode not in ("L", "P", "I;16"):
        kind = "a grey picture of fewer than 8 bits" if scaled else f"a picture of mode {image.mode}"
        raise DataError(
            f"{name}: is {kind}; save class ids as an 8-bit or 16-bit single-channel PNG or as one with a palette"
        )
    return values


def map_labels(values: np.ndarray, table: np.ndarray, name: str) -> np.ndarray:
    """Replace the ids of a file by training ids.

    Args:
      values: (H, W) uint8 or uint16, from `decode_labels`.
      table: from `label_table`.
      name: what messages call the file.

    Returns:
      (H, W), uint8 if the table has no greater value, else uint16.

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
    """A label map, (H, W) uint8 or uint16, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "png")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    return "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__


def _listing(ids: np.ndarray) -> str:
    more = f" and {len(ids) - 8} others" if len(ids) > 8 else ""
    return f"the {'id' if len(ids) == 1 else 'ids'} {', '.join(map(str, ids[:8]))}{more}"


def _ranges(ids: np.ndarray) -> str:
    """Ascending integers, the runs among them as "first to last"."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
