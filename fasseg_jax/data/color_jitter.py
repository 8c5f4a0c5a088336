"""Color jitter of SSD (Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016), on uint8 RGB.

Brightness and contrast look up a table of the 256 values and drop the fraction, as Detectron2's jitter does. Saturation
and hue are computed in floating point. Detectron2 computes them in OpenCV's 8-bit HSV, whose hue has steps of 2
degrees: the same transform with more rounding.
"""

import numpy as np

__all__ = ["adjust_hue_saturation", "adjust_values", "jitter_colors"]

BRIGHTNESS = 32  # largest change, either way, of 255
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 36  # largest change in degrees, either way, in steps of 2: OpenCV's 18 of 180


def jitter_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, each with probability 1/2.

    Brightness comes first. Contrast comes before saturation and hue or after them, with equal probability.

    Args:
      image: uint8 RGB, (H, W, 3).
      rng: source of the randomness.

    Returns:
      uint8 RGB, (H, W, 3).
    """
    # Every value is drawn, used or not, so that none depends on which others are used.
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
    """Map each value x of a uint8 array to `factor * x + offset`, clipped to 0 to 255, and drop the fraction."""
    table = np.clip(factor * np.arange(256) + offset, 0, 255).astype(np.uint8)
    return table[image]


def adjust_hue_saturation(image: np.ndarray, degrees: float, factor: float) -> np.ndarray:
    """Turn the hue by `degrees` and multiply the saturation by `factor`, in the HSV color space.

    Args:
      image: uint8 RGB, (H, W, 3).
      degrees: of 360, from red towards green.
      factor: at least 0; a saturation above 1 becomes 1.

    Returns:
      uint8 RGB, (H, W, 3), rounded to the nearest.
    """
    rgb = np.moveaxis(image, -1, 0).astype(np.float32, order="C")  # (3, H, W): faster than (H, W, 3)
    value = np.maximum(np.maximum(rgb[0], rgb[1]), rgb[2])
    chroma = value - np.minimum(np.minimum(rgb[0], rgb[1]), rgb[2])
    # Saturation is chroma / value: it reaches 1 when the factor reaches value / chroma. Gray stays gray.
    factors = np.minimum(value / np.maximum(chroma, 1), np.float32(factor))
    if degrees:
        # Each primary has the full value up to one sixth of the circle from its own hue (red 0, green 2, blue 4), and
        # the full value less the chroma from two sixths on. Red, at both 0 and 6, is measured from its opposite, 3.
        hue = (_hue(rgb, value, chroma) + np.float32(degrees / 60)) % np.float32(6)
        chroma *= factors
        rgb[0] = value - chroma * np.clip(2 - np.abs(hue - 3), 0, 1)
        rgb[1] = value - chroma * np.clip(np.abs(hue - 2) - 1, 0, 1)
        rgb[2] = value - chroma * np.clip(np.abs(hue - 4) - 1, 0, 1)
    else:
        rgb = value - (value - rgb) * factors
    result = np.empty_like(image)
    result[...] = np.moveaxis(np.rint(rgb, out=rgb), 0, -1)
    return result


def _hue(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Hue in sixths of the circle, -1 to 5: red 0, green 2, blue 4. Gray has 0."""
    red, green, blue = rgb
    scale = 1 / np.maximum(chroma, 1)
    hue = np.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    return np.where(value == red, (green - blue) * scale, hue)
