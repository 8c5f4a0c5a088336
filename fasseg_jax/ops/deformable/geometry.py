"""What all methods of deformable sampling share: the shapes of levels, and how arrays are read as rows."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

__all__ = ["Shapes", "level_starts", "split_levels", "value_rows"]

Shapes = tuple[tuple[int, int], ...]  # (h, w) of each level


def level_starts(shapes: Shapes) -> list[int]:
    """The first token of each level."""
    return np.cumsum([0, *(h * w for h, w in shapes[:-1])]).tolist()


def split_levels(values: Float[Array, "B N *rest"], shapes: Shapes) -> list[Any]:
    """The tokens (B, h * w, ...) of each level."""
    return [values[:, start : start + h * w] for start, (h, w) in zip(level_starts(shapes), shapes, strict=True)]


def value_rows(values: Float[Array, "B N M D"]) -> tuple[Float[Array, "B*N*M D"], Int32[Array, "B 1 M"]]:
    """Values as rows, numbered (image * N + token) * M + head, and the first row of each image and head."""
    b, n, m, d = values.shape
    first_row = jnp.arange(b, dtype=jnp.int32)[:, None, None] * (n * m) + jnp.arange(m, dtype=jnp.int32)
    return values.reshape(b * n * m, d), first_row
