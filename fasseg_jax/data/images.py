"""Opens photos of any kind, and finds them in folders."""

import contextlib
import dataclasses
import io
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, ImageCms

from fasseg_jax.runtime.files import Path, in_bucket, list_files, make_path, require_regular_file

__all__ = [
    "MAX_PIXELS",
    "PHOTO_EXTENSIONS",
    "TURN",
    "PhotoError",
    "PhotoList",
    "as_stored",
    "list_photos",
    "load_upright",
    "open_image",
    "open_photo",
    "output_names",
    "reason",
    "to_rgb",
]

PHOTO_EXTENSIONS = frozenset(
    [".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)  # that a search in folders looks for; a file given by name may have any extension

ORIENTATION = 0x0112  # the EXIF tag
TURN = {  # its values, and how a viewer turns the stored pixels
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UNDO = TURN | {6: TURN[8], 8: TURN[6]}  # the others are their own inverses

MAX_PIXELS = 400_000_000  # larger files are refused: they may be made to exhaust memory when decompressed


class PhotoError(ValueError):
    """A file cannot be opened as a photo; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class PhotoList:
    """The paths of a folder's photos, and how many files of other extensions were left out."""

    paths: tuple[Path, ...]
    ignored: int


def open_photo(path: str | os.PathLike | IO[bytes]) -> np.ndarray:
    """Open a photo as a viewer shows it: turned by its EXIF orientation, the first frame of an animation.

    Transparency and color profiles are dropped. 16-bit gray is scaled to 8 bits by its full range. 32-bit and
    floating-point gray is scaled by the image's own minimum and maximum, because files state no white level for it.

    Args:
      path: a file of any format and mode that Pillow reads, with at most `MAX_PIXELS`.

    Returns:
      uint8 RGB, (H, W, 3).

    Raises:
      PhotoError: the file is missing, damaged, too large, a pipe or a device, or no image.
    """
    try:
        with open_image(path) as image:
            return np.array(to_rgb(load_upright(image)[0], image.format))
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise PhotoError(f"{path}: {reason(error)}") from error


@contextlib.contextmanager
def open_image(file: str | os.PathLike | IO[bytes]) -> Iterator[Image.Image]:
    """Open an image with at most `MAX_PIXELS`, in place of Pillow's own limit; several threads may do so at once.

    Raises:
      PhotoError: the image has more pixels, or is PostScript.
      Exception: nearly any, if the file is no image; `reason` says why.
    """
    if isinstance(file, str | os.PathLike):
        path = make_path(file)
        require_regular_file(path)
        file = io.BytesIO(path.read_bytes()) if in_bucket(path) else file
    with _LIMIT, _LIMIT.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise PhotoError(f"more than {MAX_PIXELS // 10**6} million pixels; scale it down first")
        if image.format == "EPS":  # Pillow would hand it to Ghostscript; it is a program, which may never end
            raise PhotoError("holds PostScript, not pixels; save it as PNG")
        yield image


class _PillowLimit:
    """Holds Pillow's global limit at `MAX_PIXELS` as long as any thread reads an image."""

    def __init__(self):
        self._lock = threading.Lock()
        self._readers = 0
        self._default = Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._default = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = MAX_PIXELS
            self._readers += 1

    def __exit__(self, *_) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                Image.MAX_IMAGE_PIXELS = self._default

    def open(self, file: str | os.PathLike | IO[bytes]) -> Image.Image:
        # Filters of warnings are global too. Pillow warns of images that `open_image` refuses, and refuses larger ones.
        with self._lock, warnings.catch_warnings(action="ignore"):
            try:
                return Image.open(file)
            except Image.DecompressionBombError:
                raise PhotoError(f"more than {MAX_PIXELS // 10**6} million pixels; scale it down first") from None


_LIMIT = _PillowLimit()


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture in a format that Pillow reads"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def load_upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Decode an opened image; returns it as a viewer shows it, and its EXIF orientation (1 if nothing is turned)."""
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise nearly anything; viewers show such a photo as stored
        orientation = 1
    image.load()  # raises what is wrong with the pixels; Pillow turns a TIFF here
    if orientation not in TURN:
        return image, 1
    return image if image.format == "TIFF" else image.transpose(TURN[orientation]), orientation


def as_stored(upright: Image.Image, orientation: int) -> Image.Image:
    """Undo what `load_upright` did."""
    return upright.transpose(UNDO[orientation]) if orientation in UNDO else upright


def to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    """Convert an image of any mode to RGB; `file_format` is Pillow's name of the format it was read from."""
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
        assert converted is not None  # it is None only if Pillow converts in place
        return converted
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips these to 0 to 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        # 16-bit gray is "I;16" in most formats and "I" in netpbm.
        sixteen_bit = image.mode.startswith("I;16") or file_format == "PPM"
        black, white = (0, 65535) if sixteen_bit else (values.min(), values.max())
        values = (values - black) * (255 / (white - black) if white > black else 0)
        image = Image.fromarray((values + 0.5).astype(np.uint8))
    return image.convert("RGB")


def list_photos(folder: Path, exclude: Path | None = None) -> PhotoList:
    """Find the photos below a folder by their extensions, sorted by path.

    Symbolic links are followed; each folder is visited once. Hidden files and folders are left out.

    Args:
      folder: is searched with all its subfolders.
      exclude: a subfolder to leave out, such as that of the results.

    Raises:
      OSError: a folder cannot be read.
    """
    files = list_files(folder, exclude)
    photos = tuple(path for path in files if _is_photo(path))
    return PhotoList(photos, ignored=len(files) - len(photos))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_EXTENSIONS and not path.name.startswith(".")


def output_names(paths: list[Path]) -> list[Path]:
    """Choose names without extension for the results of photos. No two differ only in upper and lower case.

    A photo's name loses its extension, unless another photo beside it (a.jpg, a.png) would get the same name.

    Args:
      paths: the photos' paths, all different, relative to the input folder.

    Returns:
      One path for each photo, in the same folder.
    """
    names = [path.with_suffix("") for path in paths]
    while True:
        count = Counter(str(name).casefold() for name in names)
        # Keeping an extension may collide in turn (a.jpg.png): repeat until nothing changes.
        unique = [path if count[str(name).casefold()] > 1 else name for path, name in zip(paths, names, strict=True)]
        if unique == names:
            return names
        names = unique
