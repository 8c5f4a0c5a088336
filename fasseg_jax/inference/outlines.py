"""Outlines of the regions of a label map, for annotation tools: polygons that give the label map back.

A region is all pixels of one class that touch each other at their sides. Its outline runs along the borders of pixels
and encloses also what lies within the region: the regions in its holes have outlines of their own, which are smaller.
So painting all outlines, the largest first, restores the label map.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64, UInt

__all__ = ["Outline", "find_outlines"]

# Of the sides of a pixel, clockwise: top, right, bottom, left. A walk along them has the pixel on its right.
FORWARD = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]])  # (dy, dx) of the walk
LEFT = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # to the left of the walk
START = np.array([[0, 0], [0, 1], [1, 1], [1, 0]])  # where the walk along the side begins, from the pixel's corner


@dataclasses.dataclass(frozen=True)
class Outline:
    """The outline of a region.

    Attributes:
      class_id: of the region.
      corners: xy of the points where the outline turns, in pixels from the photo's upper left corner: the pixel in
        column 0 lies between x = 0 and x = 1. Clockwise, as the photo is seen.
      centers: for each corner, xy of the region's pixel in it. Coordinates count from the centers of pixels: the pixel
        in column 0 has x = 0. The polygon through them is what labelme and Pillow fill to the region's pixels.
      area: number of pixels that the outline encloses.
    """

    class_id: int
    corners: Int64[np.ndarray, "n 2"]
    centers: Int64[np.ndarray, "n 2"]
    area: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x, y, width, height) of the smallest box around it, in pixels."""
        (left, top), (right, bottom) = self.corners.min(axis=0).tolist(), self.corners.max(axis=0).tolist()
        return left, top, right - left, bottom - top


def find_outlines(labels: UInt[np.ndarray, "H W"]) -> list[Outline]:
    """The outlines of all regions, the one with the largest area first.

    Args:
      labels: class ids.
    """
    height, width = labels.shape[0] + 2, labels.shape[1] + 2
    padded = np.full((height, width), -1, np.int32)
    padded[1:-1, 1:-1] = labels
    flat = padded.ravel()
    forward, left = (steps @ (width, 1) for steps in (FORWARD, LEFT))  # as steps in `flat`
    # Sides between two classes, each with the pixel on its right: for each of the four kinds ascending.
    pixels = [np.flatnonzero(_differs(padded, *step)) for step in LEFT.tolist()]
    begins = np.cumsum([0, *map(len, pixels)])
    following = [_next_side(flat, pixels, begins, side, forward, left) for side in range(4)]
    next_index = np.concatenate([index for index, _ in following])
    turns = np.concatenate([turn for _, turn in following])
    points = np.concatenate(
        [np.stack(np.unravel_index(at, padded.shape), -1) - 1 + START[side] for side, at in enumerate(pixels)]
    )
    classes = np.concatenate([flat[at] for at in pixels])
    sides = np.repeat(np.arange(4), np.diff(begins))
    found = [_outline(loop, points, sides, int(classes[loop[0]])) for loop in _loops(next_index, turns)]
    return sorted((outline for outline in found if outline.area > 0), key=lambda outline: -outline.area)


def _differs(padded: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """(H + 2, W + 2) bool, whether the neighbor of a pixel is of another class; False in the margin."""
    height, width = padded.shape
    result = np.zeros(padded.shape, bool)
    neighbors = padded[1 + dy : height - 1 + dy, 1 + dx : width - 1 + dx]
    np.not_equal(padded[1:-1, 1:-1], neighbors, out=result[1:-1, 1:-1])
    return result


def _next_side(
    flat: np.ndarray, pixels: list[np.ndarray], begins: np.ndarray, side: int, forward: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each side of one kind the index of the side that follows it, and whether the outline turns between them.

    Pixels that only touch at a corner are in different regions: the outline turns right there.
    """
    at = pixels[side]
    ahead = at + forward[side]
    beyond = ahead + left[side]
    right = flat[ahead] != flat[at]
    straight = ~right & (flat[beyond] != flat[at])
    index = np.empty(len(at), np.int64)
    for kind, chosen, pixel in ((side + 1, right, at), (side, straight, ahead), (side - 1, ~right & ~straight, beyond)):
        index[chosen] = begins[kind % 4] + np.searchsorted(pixels[kind % 4], pixel[chosen])
    return index, ~straight


def _loops(next_index: np.ndarray, turns: np.ndarray) -> list[list[int]]:
    """The closed walks, each as the sides that begin at its corners."""
    following, turning = next_index.tolist(), turns.tolist()
    seen = bytearray(len(following))
    loops = []
    for start in np.flatnonzero(turns).tolist():
        loop = []
        side = start
        while not seen[side]:
            seen[side] = True
            if turning[side]:
                loop.append(following[side])
            side = following[side]
        if loop:
            loops.append(loop)
    return loops


def _outline(loop: list[int], points: np.ndarray, sides: np.ndarray, class_id: int) -> Outline:
    """The outline whose corners are where the sides of `loop` begin; its area is negative around a hole."""
    corners = points[loop][:, ::-1]  # xy
    x, y = corners.T
    area = int(x @ np.roll(y, -1) - y @ np.roll(x, -1)) // 2
    after = sides[loop]
    # From a corner the region's pixel lies half a pixel to the right of the walk before it and of that after it.
    inward = -(LEFT[after] + LEFT[np.roll(after, 1)])[:, ::-1]
    return Outline(class_id, corners, corners + (inward - 1) // 2, area)
