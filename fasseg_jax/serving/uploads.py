"""Reading uploaded photos."""

import io
from http import HTTPStatus

import numpy as np
from PIL import Image

from fasseg_jax.data.images import PhotoError, open_photo
from fasseg_jax.serving.http_requests import Refusal

__all__ = ["FORMATS", "open_upload", "upload_pixels"]

# The only formats of uploads: Pillow starts programs for others (EPS), or hardly anyone uses and tests them.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


def upload_pixels(file: bytes, megapixels: int) -> int:
    """The number of pixels of the photo in an uploaded file, of which nothing is decompressed.

    Raises:
      Refusal: the file is no photo, or has more than `megapixels` million pixels.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # a damaged file can raise anything
        known = ", ".join(FORMATS)
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The file is not a photo in a known format ({known})."
        ) from error
    if width * height > megapixels * 10**6:
        message = f"The photo has {width} x {height} pixels; the limit is {megapixels} million."
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    return width * height


def open_upload(file: bytes) -> np.ndarray:
    """The photo in an uploaded file that `upload_pixels` accepts, uint8 RGB (H, W, 3).

    Raises:
      Refusal: the photo is damaged.
    """
    try:
        return open_photo(io.BytesIO(file))
    except PhotoError as error:
        reason = str(error).partition(": ")[2]  # without the name of the file, which has none
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The photo is damaged: {reason}.") from error
