"""Colors for classes that have names only."""

import itertools

import numpy as np

__all__ = ["choose_colors", "simulate"]

# Okabe and Ito, "Color Universal Design", 2008: told apart by nearly everyone.
OKABE_ITO = [
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
]
# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# severity 1: what people without one of the three kinds of cones see, in linear RGB.
DEFICIENCIES = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB


def choose_colors(names: tuple[str, ...]) -> np.ndarray:
    """Choose a color for each of K classes: black for "background", the others of Okabe and Ito as long as they last.

    Each further color is the one of a grid whose smallest distance to those before it is largest, in CIELAB, for
    normal and for color-blind eyes.

    Returns:
      (K, 3) uint8 RGB, all different.
    """
    grid = np.array(list(itertools.product((0, 36, 73, 109, 146, 182, 219, 255), repeat=3)))
    colors, seen_colors = [(0, 0, 0)], _seen(np.zeros((1, 3)))  # black is that of "background", and no other's
    remaining, seen_grid = grid, _seen(grid)
    distance = np.linalg.norm(seen_grid - seen_colors, axis=-1).min(axis=-1)
    while len(colors) <= len(names):
        if len(colors) <= len(OKABE_ITO):
            color = OKABE_ITO[len(colors) - 1]
        elif distance.max() > 0:
            color = tuple(remaining[distance.argmax()].tolist())
        else:  # more classes than the grid has colors
            code = len(colors)
            color = (code % 251, code // 251 % 251, 1 + code // 63001 % 251)
            while color in colors:
                color = (color[0], color[1], color[2] + 1)
        colors.append(color)
        distance = np.minimum(distance, np.linalg.norm(seen_grid - _seen(np.array([color])), axis=-1).min(axis=-1))
    others = iter(colors[1:])
    return np.array([(0, 0, 0) if name == "background" else next(others) for name in names], np.uint8).reshape(-1, 3)


def simulate(colors: np.ndarray) -> np.ndarray:
    """What normal eyes and those without one kind of cones see of colors (n, 3) RGB: (n, 4, 3) linear RGB in [0, 1]."""
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = [linear, *(linear @ matrix.T for matrix in DEFICIENCIES)]
    return np.clip(np.stack(seen, axis=1), 0, 1)


def _seen(colors: np.ndarray) -> np.ndarray:
    """CIELAB of `simulate`, (n, 4, 3)."""
    xyz = simulate(colors) @ TO_XYZ.T / TO_XYZ.sum(axis=1)  # relative to white
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
