"""Opens photos of any kind, and finds them in folders."""

import dataclasses
import os
import warnings
from collections import Counter
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps

from fasseg_jax.runtime.files import Path, list_files

__all__ = ["MAX_PIXELS", "PHOTO_EXTENSIONS", "PhotoError", "PhotoList", "list_photos", "open_photo", "output_names"]

PHOTO_EXTENSIONS = frozenset(
    [".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)  # that a search in folders looks for; a file given by name may have any extension

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
      PhotoError: the file is missing, damaged, too large, or no image.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above this value and refuses above twice as much
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return np.array(to_rgb(_upright(image), image.format))
    except Image.DecompressionBombError:
        raise PhotoError(f"{path}: more than {MAX_PIXELS // 10**6} million pixels; scale it down first") from None
    except Image.UnidentifiedImageError:
        raise PhotoError(f"{path}: not a picture in a format that Pillow reads") from None
    except Exception as error:  # decoders raise nearly anything for a damaged file
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PhotoError(f"{path}: {reason}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # raises what is wrong with the pixels
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raise nearly anything; viewers show such a photo as stored
        return image


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
        values = (values - black) * (255 / max(white - black, np.finfo(float).tiny))
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
