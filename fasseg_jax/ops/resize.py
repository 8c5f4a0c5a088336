"""Bilinear resizing of feature maps, as by PyTorch's `interpolate(align_corners=False)`.

Computes the same as `reference.resize_bilinear`. The difference: interpolation along one axis after the other, of
slices where a map is reduced by a whole factor, and else of gathers. A slice's derivative pads; a gather's is a
scatter, which on a CPU takes nine times as long.
"""

import jax
from jaxtyping import Array, Float

from fasseg_jax.ops.bilinear import interpolate, taps

__all__ = ["resize_bilinear"]


def resize_bilinear(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B h2 w2 C"]:
    """Resize maps to `size` (h2, w2): half-pixel centers, clamped at the border, no antialiasing."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = x.shape[axis]
        if source > target and source % target == 0:
            x = _reduce(x, source // target, axis)
        elif source != target:
            x = interpolate(x, *taps(source, target), axis)
    return x


def _reduce(x: jax.Array, factor: int, axis: int) -> jax.Array:
    """One pixel for each `factor` pixels: the middle one, or the mean of the middle two."""
    low, high = (jax.lax.slice_in_dim(x, i, None, factor, axis) for i in ((factor - 1) // 2, factor // 2))
    return 0.5 * low + 0.5 * high
