"""Opening photos of any kind, and finding them in folders."""

import dataclasses
import os
import warnings
from collections import Counter

import numpy as np
from PIL import Image, ImageCms, ImageOps

from fasseg_jax.runtime.files import Path, list_files

__all__ = ["MAX_PIXELS", "PHOTO_EXTENSIONS", "PhotoError", "PhotoList", "list_photos", "open_photo", "output_names"]

PHOTO_EXTENSIONS = frozenset(
    [".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"]
)  # what a folder is searched for; a file given by name is opened whatever its extension

MAX_PIXELS = 400_000_000  # larger files are refused, as they may be built to exhaust memory when decompressed


class PhotoError(ValueError):
    """A file that cannot be opened as a photo; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class PhotoList:
    """The photos of a folder, by path, and how many other files were left out for their extension."""

    paths: tuple[Path, ...]
    ignored: int


def open_photo(path: str | os.PathLike) -> np.ndarray:
    """Open a photo as the viewer shows it: EXIF orientation applied, first frame of an animation.

    Transparency and colour profiles are dropped. 16-bit grey is scaled to 8 bits by its full range; 32-bit and
    floating-point grey, for which files state no white level, by the picture's own minimum and maximum.

    Args:
      path: a file of any format and mode that Pillow reads, of at most `MAX_PIXELS`.

    Returns:
      uint8 RGB, (H, W, 3).

    Raises:
      PhotoError: the file is missing, damaged, too large, or no picture.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above it and refuses above twice its value
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return np.array(to_rgb(_upright(image), image.format))
    except Image.DecompressionBombError:
        raise PhotoError(f"{path}: more than {MAX_PIXELS // 10**6} million pixels; scale it down first") from None
    except Image.UnidentifiedImageError:
        raise PhotoError(f"{path}: not a picture in a format that Pillow reads") from None
    except Exception as error:  # a damaged file raises nearly anything in a decoder
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PhotoError(f"{path}: {reason}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # raises what is wrong with the pixels
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data, which raise nearly anything: shown as stored, as viewers do
        return image


def to_rgb(image: Image.Image, file_format: str) -> Image.Image:
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion clips these to 0..255
        values = np.nan_to_num(np.asarray(image, np.float64))
        # 16-bit grey is "I;16" in most formats and "I" in netpbm.
        sixteen_bit = image.mode.startswith("I;16") or file_format == "PPM"
        black, white = (0, 65535) if sixteen_bit else (values.min(), values.max())
        values = (values - black) * (255 / max(white - black, np.finfo(float).tiny))
        image = Image.fromarray((values + 0.5).astype(np.uint8))
    return image.convert("RGB")


def list_photos(folder: Path, exclude: Path | None = None) -> PhotoList:
    """Find the photos below a folder by their extensions, in the order of their paths.

    Symbolic links are followed, each folder is visited once. Hidden files and folders count as no photos.

    Args:
      folder: where to search, with all subfolders.
      exclude: a folder inside that is not searched (where the results go).

    Raises:
      OSError: a folder cannot be read.
    """
    files = list_files(folder, exclude)
    photos = tuple(path for path in files if _is_photo(path))
    return PhotoList(photos, ignored=len(files) - len(photos))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_EXTENSIONS and not path.name.startswith(".")


def output_names(paths: list[Path]) -> list[Path]:
    """Names for the results of photos, without extension: no two alike, also where upper and lower case are the same.

    A photo's name loses its extension, unless another photo beside it (a.jpg, a.png) would get the same name.

    Args:
      paths: the photos' different paths, relative to the input folder.

    Returns:
      One path for each, in the same folder.
    """
    names = [path.with_suffix("") for path in paths]
    while True:
        count = Counter(str(name).casefold() for name in names)
        # Keeping an extension may collide in turn (a.jpg.png): repeat until nothing changes.
        kept = [path if count[str(name).casefold()] > 1 else name for path, name in zip(paths, names, strict=True)]
        if kept == names:
            return names
        names = kept
