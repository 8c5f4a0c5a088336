"""Bilinear samples of masks and label maps at points.

They compute the same as `reference.sample_masks`. The differences: masks whose pixels lie together share their gathers,
TPUs use matmuls in place of gathers, and masks of classes are sampled from the label map, without being formed.

Points are xy in [0, 1] of a map's width and height, pixel centers at half-integers; a map is zero outside.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer

from fasseg_jax.ops.bilinear import corners

__all__ = ["sample_labels", "sample_masks", "sample_masks_at_shared_points"]


def sample_masks(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """Sample each mask at points of its own.

    A TPU gathers single numbers so slowly that matmuls take a hundredth of the time, forward and backward (by its
    compiler's estimate, for masks of 128 x 128).
    """
    return jax.lax.platform_dependent(masks, points, tpu=sample_by_matmuls, default=sample_by_gathers)


def sample_by_gathers(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """`sample_masks` as one gather for each corner."""
    n, h, w = masks.shape
    pixels = jnp.reshape(masks, -1)  # (N * h * w,)
    first = h * w * jnp.arange(n)[:, None]  # (N, 1), the index of each mask's first pixel
    return _sum_of(
        corner.weight * pixels.at[first + corner.pixel].get(mode="promise_in_bounds")
        for corner in corners(points[..., 0], points[..., 1], (h, w))
    )


def sample_by_matmuls(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """`sample_masks` as a sum over all pixels, each weighted by a tent of one pixel's size around the point."""
    _, h, w = masks.shape
    rows = jnp.einsum("nph,nhw->npw", _tent(points[..., 1], h), masks, precision="highest")  # (N, P, w)
    return (rows * _tent(points[..., 0], w)).sum(axis=-1)


def _tent(position, length):
    """Weights of an axis' pixels for positions (...) in [0, 1]: (..., length)."""
    return jnp.maximum(1 - jnp.abs(position[..., None] * length - 0.5 - jnp.arange(length)), 0)


def sample_masks_at_shared_points(masks: Float[Array, "h w N"], points: Float[Array, "P 2"]) -> Float[Array, "P N"]:
    """Sample all masks at the same points. The values of all masks at a pixel lie together in memory."""
    h, w, n = masks.shape
    pixels = masks.reshape(h * w, n)
    return _sum_of(
        corner.weight[:, None] * pixels.at[corner.pixel].get(mode="promise_in_bounds")  # (P, N)
        for corner in corners(points[:, 0], points[:, 1], (h, w))
    )


def sample_labels(
    labels: Integer[Array, "B H W"], image: Int[Array, "N"], points: Float[Array, "N P 2"]
) -> list[tuple[Integer[Array, "N P"], Float[Array, "N P"]]]:
    """Labels and bilinear weights of the four pixels around points, each row of which lies in the image `image[n]`.

    The mask of class c is one where the label is c. Its samples are sum(weight * (label == c)), fractional as those of
    any mask, so no mask is ever formed.
    """
    _, height, width = labels.shape
    pixels = jnp.reshape(labels, -1)  # (B * H * W,)
    first = image[:, None] * (height * width)  # (N, 1)
    return [
        (pixels.at[first + corner.pixel].get(mode="promise_in_bounds"), corner.weight)
        for corner in corners(points[..., 0], points[..., 1], (height, width))
    ]


def _sum_of(terms):
    return functools.reduce(jnp.add, terms)
