"""Bilinear resizing of feature maps, as by PyTorch's `interpolate(align_corners=False)`.

Computes the same as `reference.resize_bilinear`. The difference: interpolation along one axis after the other, of
slices where one length is a multiple of the other, and else of gathers. A slice's derivative pads; a gather's is a
scatter, which on a CPU takes nine times as long.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fasseg_jax.ops.bilinear import interpolate, taps

__all__ = ["resize_bilinear"]


def resize_bilinear(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B h2 w2 C"]:
    """Resize maps to `size` (h2, w2): half-pixel centers, clamped at the border, no antialiasing."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = x.shape[axis]
        if source == target:
            continue
        if source % target == 0:
            x = _reduce(x, source // target, axis)
        elif target % source == 0:
            x = _enlarge(x, target // source, axis)
        else:
            x = interpolate(x, *taps(source, target), axis)
    return x


def _reduce(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """One pixel for each `factor` pixels: the middle one, or the mean of the middle two."""
    low, high = (jax.lax.slice_in_dim(x, i, None, factor, axis) for i in ((factor - 1) // 2, factor // 2))
    return 0.5 * low + 0.5 * high


def _enlarge(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """`factor` pixels for each: the first half lie between it and the one before, the others before the next."""
    first, but_last, but_first, last = (
        jax.lax.slice_in_dim(x, start, end, axis=axis) for start, end in ((0, 1), (0, -1), (1, None), (-1, None))
    )
    to_before, to_after = (jnp.concatenate(y, axis) - x for y in ([first, but_last], [but_first, last]))
    offsets = [(i + 0.5) / factor - 0.5 for i in range(factor)]  # from the pixel's center, in pixels
    # Beyond the outermost centers this adds exactly nothing. HRCA ranks such values, and equal ones must stay equal.
    parts = [x + abs(offset) * (to_before if offset < 0 else to_after) for offset in offsets]
    return jnp.stack(parts, axis + 1).reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])
