"""What all methods of deformable sampling share: level shapes, corners, rows of values."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Shapes"]
Shapes = tuple[tuple[int, int], ...]  # (h, w) of each level


def token_rows(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values as rows (B * N * M, D), row (image * N + token) * M + head; the first of each image and head (B, 1, M)."""
    b, n, m, d = values.shape
    first_row = jnp.arange(b, dtype=jnp.int32)[:, None, None] * (n * m) + jnp.arange(m, dtype=jnp.int32)
    return values.reshape(b * n * m, d), first_row


class Corner(NamedTuple):
    """One of the four pixels around each of some samples: its token in the level, and how near it is."""

    inside: jax.Array  # the level
    token: jax.Array
    near_x: jax.Array
    near_y: jax.Array
    slope_x: int  # derivative of `near_x` by the sample's x in pixels
    slope_y: int


def corners(xy: tuple[jax.Array, jax.Array], size: tuple[jax.Array, jax.Array]) -> Iterator[Corner]:
    """Of samples at x and y in [0, 1], arrays of one shape, in a level of `size` (h, w)."""
    (x, y), (h, w) = xy, size
    x, y = x * w - 0.5, y * h - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)
    for column, near_x, slope_x in ((x0, x0 + 1 - x, -1), (x0 + 1, x - x0, 1)):
        for row, near_y, slope_y in ((y0, y0 + 1 - y, -1), (y0 + 1, y - y0, 1)):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            token = jnp.where(inside, row * w + column, 0).astype(jnp.int32)
            yield Corner(inside, token, near_x, near_y, slope_x, slope_y)
