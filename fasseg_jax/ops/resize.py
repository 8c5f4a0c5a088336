"""Bilinear resizing of feature maps, as by PyTorch's `interpolate(align_corners=False)`.

Computes the same as `reference.resize_bilinear`. The difference: a gather and an interpolation along each axis, which
on a CPU take a quarter of the time.
"""

from jaxtyping import Array, Float

from fasseg_jax.ops.bilinear import interpolate, taps

__all__ = ["resize_bilinear"]


def resize_bilinear(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B h2 w2 C"]:
    """Resize maps to `size` (h2, w2): half-pixel centers, clamped at the border, no antialiasing."""
    for axis, length in ((1, size[0]), (2, size[1])):
        if x.shape[axis] != length:
            x = interpolate(x, *taps(x.shape[axis], length), axis)
    return x
