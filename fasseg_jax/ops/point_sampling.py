"""Bilinear samples of masks and label maps at points."""

import jax
import jax.numpy as jnp

__all__ = ["sample_labels", "sample_masks", "sample_masks_at_shared_points"]


def corners(points: jax.Array, shape: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
    """Row-major places, int32, and bilinear weights of the four pixels around each point, all (..., P).

    A pixel outside of the map has weight zero, and the place of one inside.
    """
    h, w = shape
    x, y = points[..., 0] * w - 0.5, points[..., 1] * h - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)

    def corner(column, row, weight):
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        place = jnp.clip(row, 0, h - 1).astype(jnp.int32) * w + jnp.clip(column, 0, w - 1).astype(jnp.int32)
        return place, jnp.where(inside, weight, 0)

    return [
        corner(x0, y0, (x0 + 1 - x) * (y0 + 1 - y)),
        corner(x0 + 1, y0, (x - x0) * (y0 + 1 - y)),
        corner(x0, y0 + 1, (x0 + 1 - x) * (y - y0)),
        corner(x0 + 1, y0 + 1, (x - x0) * (y - y0)),
    ]


def sample_masks(masks: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear samples of masks (N, h, w), each at points of its own (N, P, 2): (N, P).

    A TPU gathers single numbers so slowly that matrix products take a hundredth of the time (by its compiler's
    estimate, 128 x 128 masks), forward and backward.
    """
    return jax.lax.platform_dependent(masks, points, tpu=sample_by_products, default=sample_by_gathers)


def sample_by_gathers(masks: jax.Array, points: jax.Array) -> jax.Array:
    """`sample_masks` as one gather for each corner."""
    size = masks.shape[1] * masks.shape[2]
    flat, start = jnp.reshape(masks, -1), size * jnp.arange(len(masks))[:, None]  # (N * h * w,), (N, 1)
    take = lambda place: flat.at[start + place].get(mode="promise_in_bounds")  # (N, P)
    return sum(weight * take(place) for place, weight in corners(points, masks.shape[1:]))


def sample_by_products(masks: jax.Array, points: jax.Array) -> jax.Array:
    """`sample_masks` as the sum over all pixels, by what a tent of one pixel's size around a point leaves of each."""
    tent = lambda position, size: jnp.maximum(1 - jnp.abs(position[..., None] * size - 0.5 - jnp.arange(size)), 0)
    x, y = points[..., 0], points[..., 1]
    rows = jnp.einsum("nph,nhw->npw", tent(y, masks.shape[1]), masks, precision="highest")  # (N, P, w)
    return (rows * tent(x, masks.shape[2])).sum(axis=-1)


def sample_masks_at_shared_points(masks: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear samples of masks (h, w, N), whose values at a pixel lie together, at points (P, 2): (P, N)."""
    rows = masks.reshape(-1, masks.shape[2])  # (h, w, N) -> (h * w, N)
    take = lambda place: rows.at[place].get(mode="promise_in_bounds")  # (P, N)
    return sum(weight[:, None] * take(place) for place, weight in corners(points, masks.shape[:2]))


def sample_labels(labels: jax.Array, image: jax.Array, points: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Labels and bilinear weights of the four pixels around points (N, P, 2) of images (N,): all (N, P).

    The mask of class c, one where `labels` (B, H, W) is c, has the samples sum(weight * (label == c)), as fractional
    as those of any mask; so no mask is ever formed.
    """
    size = labels.shape[1] * labels.shape[2]
    flat = jnp.reshape(labels, -1)  # (B * H * W,)
    take = lambda place: flat.at[image[:, None] * size + place].get(mode="promise_in_bounds")
    return [(take(place), weight) for place, weight in corners(points, labels.shape[1:])]
