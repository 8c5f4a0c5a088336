"""From image files to arrays: photos to RGB, label maps to training ids."""

import io

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.images import as_stored, load_upright, open_image, reason, to_rgb
from fasseg_jax.data.samples import Orientation, Sample
from fasseg_jax.runtime.files import Path, require_regular_file

__all__ = [
    "LABEL_EXTENSIONS",
    "LABEL_ORIENTATIONS",
    "UNKNOWN",
    "check_ignore_label",
    "count_labels",
    "decode_labels",
    "decode_sample",
    "encode_labels",
    "file_ids",
    "label_dtype",
    "label_table",
    "map_labels",
    "read_file",
]

UNKNOWN = -1  # in a label table: files must not contain this id
# What a folder of label maps is searched for, the preferred one first. A JPEG is found only to be refused.
LABEL_EXTENSIONS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")
LOSSLESS = ("PNG", "TIFF", "BMP", "DIB", "GIF")  # Pillow's names of formats
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # Pillow's names of compressions
LABEL_ORIENTATIONS = ("auto", "viewer", "stored")
DARK = 8  # a gray below this one is hardly told from black
BLOCK = 2**22  # pixels; NumPy's index arrays of a whole large label map would take eight times its memory


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


def check_ignore_label(num_classes: int, ignore_label: int, reduce_zero_label: bool = False) -> None:
    """Raise a `DataError` if `ignore_label` is the id of one of K = `num_classes` classes, or too large."""
    first = int(reduce_zero_label)
    if not num_classes + first <= ignore_label <= 65535:
        raise DataError(
            f"config.data.ignore_label = {ignore_label} must be no class id and at most 65535: with {num_classes} "
            f"classes{' from 1 on' * first}, choose {255 if num_classes + first <= 255 else 65535}"
        )


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
    check_ignore_label(num_classes, ignore_label, reduce_zero_label)
    first = int(reduce_zero_label)
    table = np.full(65536, UNKNOWN, np.int32)
    if reduce_zero_label:
        table[0] = ignore_label
    table[first : first + num_classes] = np.arange(num_classes)
    table[ignore_label] = ignore_label
    return table


def decode_sample(
    photo: bytes, labels: np.ndarray, name: str, labels_name: str, label_orientation: str = "auto"
) -> Sample:
    """Decode a photo to RGB, and turn it so that it fits its label map.

    The EXIF orientation says how a viewer turns the photo. Annotation tools differ in what they show: "viewer" means
    that labels are drawn on the turned photo, which `open_photo` gives too, and "stored" that they are drawn on the
    stored pixels. With "auto", sizes decide if they can; if both fit, the photo is turned.

    Args:
      photo: an image file.
      labels: the training ids, (H, W).
      name: names the sample, and the photo in messages.
      labels_name: names the label map in messages.
      label_orientation: "auto", "viewer" or "stored".

    Raises:
      DataError: the photo is no image, damaged, or of another size than the label map.
    """
    height, width = labels.shape
    try:
        with open_image(io.BytesIO(photo)) as image:
            upright, exif = load_upright(image)
            stored = as_stored(upright, exif)
            orientation = _orientation(upright.size, stored.size, (width, height), label_orientation)
            rgb = np.asarray(to_rgb(stored if orientation == "stored" else upright, image.format))
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise DataError(f"{name}: cannot be read as a picture ({_reason(error)}); replace or remove it") from error
    if rgb.shape[:2] != labels.shape:
        turned = f" (EXIF turns the photo, and config.data.label_orientation is {label_orientation!r})"
        raise DataError(
            f"{name} is {rgb.shape[1]}x{rgb.shape[0]} pixels, its label map {labels_name} "
            f"{width}x{height}: they must have the same size{turned if exif != 1 else ''}"
        )
    return Sample(rgb, labels, name, orientation if exif != 1 else "none")


def _orientation(
    upright: tuple[int, int], stored: tuple[int, int], wanted: tuple[int, int], label_orientation: str
) -> Orientation:
    """How a label map of the wanted size lies on a photo."""
    if label_orientation != "auto":
        return "stored" if label_orientation == "stored" else "viewer"
    if upright != wanted == stored:
        return "stored"
    return "either" if upright == stored else "viewer"


def decode_labels(file: bytes, name: str, stored: bool = False) -> np.ndarray:
    """Decode a label map: one channel of 8 or 16 bits, or the indices (never the colors) of a palette.

    Args:
      file: a PNG, TIFF, BMP or GIF file.
      name: names the file in messages.
      stored: do not turn the label map, if it has an EXIF orientation of its own.

    Returns:
      (H, W) uint8 or uint16.

    Raises:
      DataError: the file is damaged, or of a kind whose ids are not certain.
    """
    try:
        with open_image(io.BytesIO(file)) as image:
            doubt = _doubt(image)
            upright, exif = load_upright(image)
            values = np.asarray(as_stored(upright, exif) if stored else upright)
    except Exception as error:
        raise DataError(f"{name}: cannot be read as a label map ({_reason(error)}); replace or remove it") from error
    if not doubt and upright.mode not in ("L", "P", "I;16", "I;16B"):
        doubt = f"is a picture of mode {upright.mode}"
    if not doubt and upright.mode == "P":
        doubt = _doubt_of_palette(values, upright.getpalette() or [])
    if doubt:
        raise DataError(
            f"{name}: {doubt}; save class ids as an 8-bit or 16-bit single-channel PNG or as one with a palette"
        )
    return values.astype(np.uint16) if upright.mode == "I;16B" else values


def _doubt(image: Image.Image) -> str:
    """Why the ids of an opened label map are not certain; empty if they are."""
    kind = image.format or ""
    if kind not in LOSSLESS:
        lossy = ", whose compression changes ids" if kind in ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF") else ""
        return f"holds a {kind} picture{lossy}; go back to the annotations"
    if kind == "TIFF" and image.info.get("compression") in LOSSY_TIFF:
        return "is a TIFF whose compression changes ids; go back to the annotations"
    if kind in ("TIFF", "GIF") and getattr(image, "n_frames", 1) > 1:
        return f"is a {kind} of several pages or frames"
    # Decoders scale the brightness of gray images of 1, 2 or 4 bits (1 of 4 bits becomes 17), and invert "white is 0".
    raw_modes = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in getattr(image, "tile", ())]
    if image.mode == "1" or any(raw.startswith(("L;", "1;")) for raw in raw_modes):
        inverted = any(raw in ("L;I", "L;R", "L;IR") for raw in raw_modes)
        return (
            "is a gray picture that counts from white or its bits backwards"
            if inverted
            else ("is a gray picture of fewer than 8 bits")
        )
    return ""


def _doubt_of_palette(indices: np.ndarray, palette: list[int]) -> str:
    """Why indices may not be the ids: programs that pack files number the grays anew that occur in them."""
    used = np.flatnonzero(count_labels(indices))
    colors = np.array(palette, np.int64).reshape(-1, 3)
    if len(used) < 2 or used[-1] >= len(colors):
        return ""
    red, green, blue = colors[used].T
    gray = np.array_equal(red, green) and np.array_equal(red, blue)
    # Grays that are ids lie close together at the dark end; grays that are there to be seen do not.
    if not gray or np.array_equal(red, used) or np.sort(red)[1] >= DARK:
        return ""
    return f"has a palette of grays ({', '.join(map(str, red[:8]))}, ...), which are probably the ids, not the indices"


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
    counts = count_labels(values)
    unknown = np.flatnonzero((counts > 0) & (table[: len(counts)] == UNKNOWN))
    if len(unknown):
        known = np.flatnonzero(table != UNKNOWN)
        raise DataError(
            f"{name}: holds {_listing(unknown)}, but only {_ranges(known)} are known; correct the file, the "
            "table of classes, config.data.ignore_label or config.data.reduce_zero_label"
        )
    table = table.astype(label_dtype(table.max()))
    labels = np.empty(values.shape, table.dtype)
    rows = max(1, BLOCK // max(1, values.shape[1]))
    for top in range(0, len(values), rows):
        labels[top : top + rows] = table[values[top : top + rows]]
    return labels


def count_labels(labels: np.ndarray) -> np.ndarray:
    """Count the pixels of each value in (H, W) uint8 or uint16, as (256,) or (65536,) int64."""
    counts = np.zeros(np.iinfo(labels.dtype).max + 1, np.int64)
    flat = labels.ravel()
    for start in range(0, flat.size, BLOCK):
        counts += np.bincount(flat[start : start + BLOCK], minlength=len(counts))
    return counts


def encode_labels(labels: np.ndarray) -> bytes:
    """Encode a label map, (H, W) uint8 or uint16, as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "png")
    return buffer.getvalue()


def _reason(error: Exception) -> str:
    return "unknown format" if isinstance(error, Image.UnidentifiedImageError) else reason(error)


def _listing(ids: np.ndarray) -> str:
    more = f" and {len(ids) - 8} others" if len(ids) > 8 else ""
    return f"the {'id' if len(ids) == 1 else 'ids'} {', '.join(map(str, ids[:8]))}{more}"


def _ranges(ids: np.ndarray) -> str:
    """Write ascending integers with their runs as "first to last"."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def read_file(path: Path) -> bytes:
    """Read a file; a `DataError` that names it if it cannot be read, or is a pipe or a device."""
    try:
        require_regular_file(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
