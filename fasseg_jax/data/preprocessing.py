"""From a photo to the network's input: resized, normalised, padded (on the host, in numpy)."""

import numpy as np
from PIL import Image

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "SIZE_DIVISOR", "normalize", "pad", "resize_photo", "resized_size"]

# Of ImageNet, RGB, for pixel values 0 to 255.
PIXEL_MEAN = np.array([123.675, 116.280, 103.530], np.float32)
PIXEL_STD = np.array([58.395, 57.120, 57.375], np.float32)

SIZE_DIVISOR = 32  # the coarsest stride: both sides of the network's input are multiples of it


def resized_size(size: tuple[int, int], short_side: int, max_long_side: int) -> tuple[int, int]:
    """Test size of a photo: the shorter side becomes `short_side`, unless the longer would exceed `max_long_side`.

    Args:
      size: (height, width) in pixels.
      short_side: wanted length of the shorter side.
      max_long_side: the longer side is never larger; the shorter then follows from the aspect ratio.

    Returns:
      (height, width), at least 1 each.
    """
    scale = short_side / min(size)
    # Scaled in two steps, as Detectron2 does, so that the products round alike.
    height, width = (side * scale for side in size)
    limit = min(1.0, max_long_side / max(height, width))
    return max(1, int(height * limit + 0.5)), max(1, int(width * limit + 0.5))


def resize_photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a photo, uint8 (H, W, 3), to uint8 (*size, 3): Pillow's bilinear filter, antialiased when it shrinks."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize(image):
    """Normalise RGB values 0 to 255, (..., 3), to float32 of about zero mean and unit variance."""
    return (image.astype(np.float32) - PIXEL_MEAN) / PIXEL_STD


def pad(image: np.ndarray) -> np.ndarray:
    """Pad a normalised photo (h, w, 3) with zeros at the bottom and right to multiples of 32."""
    bottom, right = (-side % SIZE_DIVISOR for side in image.shape[:2])
    return np.pad(image, ((0, bottom), (0, right), (0, 0)))
