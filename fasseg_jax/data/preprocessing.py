"""From a photo to the network's input, on the host: resized, normalized (docs/specification.md, sections 1 and 6)."""

from typing import Any

import numpy as np
from PIL import Image

__all__ = ["PIXEL_MEAN", "PIXEL_STD", "normalize", "resize_photo", "resized_size"]

# ImageNet's, for RGB values 0 to 255.
PIXEL_MEAN = np.array([123.675, 116.280, 103.530], np.float32)
PIXEL_STD = np.array([58.395, 57.120, 57.375], np.float32)


def resized_size(size: tuple[int, int], short_side: int, max_long_side: int) -> tuple[int, int]:
    """Test size of a photo: the shorter side becomes `short_side`, unless the longer one would exceed `max_long_side`.

    Args:
      size: (height, width) in pixels.
      short_side: wanted length of the shorter side.
      max_long_side: limit of the longer side. If it is reached, the shorter side follows from the aspect ratio.

    Returns:
      (height, width), at least 1 each.
    """
    scale = short_side / min(size)
    # Detectron2 scales in these two steps; so the products round as there.
    height, width = (side * scale for side in size)
    limit = min(1.0, max_long_side / max(height, width))
    return max(1, int(height * limit + 0.5)), max(1, int(width * limit + 0.5))


def resize_photo(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a photo, uint8 (H, W, 3), to uint8 (*size, 3): Pillow's bilinear filter, antialiased if it shrinks."""
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def normalize(image: Any) -> Any:
    """Normalize RGB values 0 to 255, a NumPy or JAX array (..., 3), to float32 of about zero mean and unit variance."""
    return (image.astype(np.float32) - PIXEL_MEAN) / PIXEL_STD
