"""Bilinear interpolation: the pixels around a point and their weights."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Corner", "corners", "interpolate", "north_west", "taps"]

Length = int | Int[Array, ""]


class Corner(NamedTuple):
    """One of the four pixels around each of some points.

    Attributes:
      inside: whether the pixel lies in the map.
      pixel: its row-major index in the map; 0 where it lies outside.
      weight_x: the factor of its weight that depends on the point's x.
      weight_y: the factor that depends on y.
      slope_x: the derivative of `weight_x` by the point's x in pixels, -1 or 1.
      slope_y: that of `weight_y` by y.
    """

    inside: Bool[Array, "*points"]
    pixel: Int[Array, "*points"]
    weight_x: Float[Array, "*points"]
    weight_y: Float[Array, "*points"]
    slope_x: int
    slope_y: int

    @property
    def weight(self) -> Float[Array, "*points"]:
        """The pixel's weight, zero outside of the map."""
        return jnp.where(self.inside, self.weight_x * self.weight_y, 0)


def corners(x: Float[Array, "*points"], y: Float[Array, "*points"], size: tuple[Length, Length]) -> list[Corner]:
    """The pixels north-west, north-east, south-west and south-east of points in a map of `size` (h, w).

    x and y are in [0, 1] of the map's width and height, pixel centers at half-integers; the map is zero outside.
    """
    h, w = size
    west, north = north_west(x, y, size)
    x, y = x * w - 0.5, y * h - 0.5
    found = []
    for row, weight_y, slope_y in ((north, north + 1 - y, -1), (north + 1, y - north, 1)):
        for column, weight_x, slope_x in ((west, west + 1 - x, -1), (west + 1, x - west, 1)):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            pixel = jnp.where(inside, row.astype(jnp.int32) * w + column.astype(jnp.int32), 0)
            found.append(Corner(inside, pixel, weight_x, weight_y, slope_x, slope_y))
    return found


def north_west(
    x: Float[Array, "*points"], y: Float[Array, "*points"], size: tuple[Length, Length]
) -> tuple[Float[Array, "*points"], Float[Array, "*points"]]:
    """Column and row of the pixel north-west of points, which may be -1; whole numbers. Arguments as of `corners`."""
    h, w = size
    return jnp.floor(x * w - 0.5), jnp.floor(y * h - 0.5)


def taps(
    source: int, target: int
) -> tuple[Int[np.ndarray, "target"], Int[np.ndarray, "target"], Float[np.ndarray, "target"]]:
    """How to resize an axis: for each target index the two source indices around it, and the weight of the second.

    Half-pixel centers, clamped at the border.
    """
    position = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0)
    low = np.floor(position).astype(np.int32)
    return low, np.minimum(low + 1, source - 1), position - low


def interpolate(
    x: Float[Array, "..."],
    low: Int[Array | np.ndarray, "target"],
    high: Int[Array | np.ndarray, "target"],
    weight: Float[Array | np.ndarray, "target"],
    axis: int,
) -> Float[Array, "..."]:
    """(1 - weight) * x[low] + weight * x[high] along an axis, which takes the length of the taps."""
    weight = jnp.asarray(weight, x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))  # broadcast over the axes behind
    return jnp.take(x, low, axis, mode="clip") * (1 - weight) + jnp.take(x, high, axis, mode="clip") * weight
