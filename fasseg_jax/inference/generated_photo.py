"""A photo for trying an installation without one."""

import numpy as np

__all__ = ["generate_photo"]


def generate_photo(height: int = 512, width: int = 683) -> np.ndarray:
    """Draw textured disks before a shaded background, always the same: uint8 RGB, (H, W, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.stack([90 + 80 * y / height, 130 + 50 * x / width, 210 - 120 * y / height], axis=-1)
    for _ in range(9):
        center_y, center_x, radius = rng.uniform((0, 0, 40), (height, width, 130))
        frequency_y, frequency_x = rng.uniform(-0.4, 0.4, 2)
        texture = 25 * np.sin(frequency_y * y + frequency_x * x)[..., None] + rng.uniform(30, 225, 3)
        inside = (y - center_y) ** 2 + (x - center_x) ** 2 < radius**2
        picture[inside] = texture[inside]
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
