"""Colour jitter of SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016), on uint8 RGB.

Brightness and contrast go through a table of the 256 values, and drop the fraction, as Detectron2's jitter does.
Saturation and hue are computed in floating point, where Detectron2's go through OpenCV's 8-bit HSV, whose hue has steps
of 2 degrees: the same transform without its rounding.
"""

import numpy as np

__all__ = ["adjust_hue_saturation", "adjust_values", "jitter_colors"]

BRIGHTNESS = 32  # at most, either way, of 255
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 36  # degrees at most, either way, in steps of 2: OpenCV's 18 of 180


def jitter_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, each with probability 1/2.

    Brightness comes first, then contrast, saturation, hue, or, as often, saturation, hue, contrast.

    Args:
      image: uint8 RGB, (H, W, 3).
      rng: where the randomness comes from.

    Returns:
      uint8 RGB, (H, W, 3).
    """
    # All are drawn in any case, so that what one is does not depend on whether another is used.
    use_brightness, use_contrast, use_saturation, use_hue, contrast_first = rng.integers(2, size=5)
    brightness, contrast, saturation = rng.uniform(*np.transpose([(-BRIGHTNESS, BRIGHTNESS), CONTRAST, SATURATION]))
    hue = 2 * rng.integers(-HUE // 2, HUE // 2, endpoint=True)

    if use_brightness:
        image = adjust_values(image, offset=brightness)
    if use_contrast and contrast_first:
        image = adjust_values(image, factor=contrast)
    if use_saturation or use_hue:
        image = adjust_hue_saturation(image, hue * use_hue, saturation if use_saturation else 1.0)
    if use_contrast and not contrast_first:
        image = adjust_values(image, factor=contrast)
    return image


def adjust_values(image: np.ndarray, factor: float = 1.0, offset: float = 0.0) -> np.ndarray:
    """Map each value x of a uint8 array to `factor * x + offset`, cut to 0..255, without its fraction."""
    table = np.clip(factor * np.arange(256) + offset, 0, 255).astype(np.uint8)
    return table[image]


def adjust_hue_saturation(image: np.ndarray, degrees: float, factor: float) -> np.ndarray:
    """Turn the hue by `degrees` and multiply the saturation by `factor`, in the HSV colour space.

    Args:
      image: uint8 RGB, (H, W, 3).
      degrees: of the circle of 360, red towards green.
      factor: at least 0; a saturation above 1 becomes 1.

    Returns:
      uint8 RGB, (H, W, 3), rounded to the nearest.
    """
    rgb = np.moveaxis(image, -1, 0).astype(np.float32, order="C")  # (3, H, W): three planes are faster than triples
    value = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
    chroma = value - np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])
    # A saturation is chroma / value: it reaches 1 where the factor reaches value / chroma. Grey stays grey.
    factors = np.minimum(value / np.maximum(chroma, 1), np.float32(factor))
    if degrees:
        # From the value at its own hue, each primary falls by the chroma between the sixths 1 and 2 away from it.
        hue = (_hue(rgb, value, chroma) + np.float32(degrees / 60)) % np.float32(6)
        away = np.abs(hue - 3), np.abs(hue - 2), np.abs(hue - 4)  # of red, from its opposite; of green; of blue
        chroma *= factors
        rgb[0] = value - chroma * np.clip(2 - away[0], 0, 1)
        rgb[1] = value - chroma * np.clip(away[1] - 1, 0, 1)
        rgb[2] = value - chroma * np.clip(away[2] - 1, 0, 1)
    else:
        rgb = value - (value - rgb) * factors
    result = np.empty_like(image)
    result[...] = np.moveaxis(np.rint(rgb, out=rgb), 0, -1)
    return result


def _hue(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Hue in sixths of the circle, -1 to 5: red 0, green 2, blue 4; of grey 0."""
    red, green, blue = rgb
    scale = 1 / np.maximum(chroma, 1)
    hue = np.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    return np.where(value == red, (green - blue) * scale, hue)
