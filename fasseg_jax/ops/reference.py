"""The plain version of what this chapter computes: the obvious expressions, with the derivatives that JAX finds.

The tests compare the fast versions with these. For `assignment.assign` the tests use
`scipy.optimize.linear_sum_assignment`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fasseg_jax.ops.deformable.geometry import Shapes, split_levels

__all__ = [
    "attend",
    "deformable_sample",
    "first_argmax",
    "gelu_matmul",
    "layer_norm",
    "most_uncertain",
    "relu",
    "resize_bilinear",
    "sample_masks",
    "top_indices",
]


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0)."""
    return jax.nn.relu(x)


def gelu_matmul(x: Float[Array, "*batch C"], kernel: Float[Array, "C out"]) -> Float[Array, "*batch out"]:
    """gelu(x) @ kernel."""
    return jax.nn.gelu(x, approximate=False) @ kernel


def layer_norm(
    x: Float[Array, "*rows C"], scale: Float[Array, "C"], bias: Float[Array, "C"], epsilon: float = 1e-5
) -> Float[Array, "*rows C"]:
    """Each row less its mean, divided by its standard deviation, then scaled and shifted."""
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


def attend(
    logits: Float[Array, "*batch M Q N"], values: Float[Array, "*batch M N D"]
) -> tuple[Float[Array, "*batch M Q D"], Float[Array, "*batch Q N"]]:
    """softmax(logits) @ values, and the probabilities averaged over the heads."""
    probabilities = jax.nn.softmax(logits)
    return probabilities @ values, probabilities.mean(axis=-3)


def resize_bilinear(x: Float[Array, "B h w C"], size: tuple[int, int]) -> Float[Array, "B h2 w2 C"]:
    """Bilinear, half-pixel centers, clamped at the border, no antialiasing."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear", antialias=False)


def top_indices(scores: Float[Array, "B N"], k: int) -> Int[Array, "B {k}"]:
    """Indices of the k largest scores, the largest first."""
    return jnp.argsort(-scores, axis=-1, stable=True)[:, :k]


def first_argmax(scores: Float[Array, "..."], axis: int) -> Int[Array, "..."]:
    """Index of the largest score, the first of equals."""
    return jnp.argmax(scores, axis=axis)


def most_uncertain(logits: Float[Array, "N P"], count: int) -> Int[Array, "N {count}"]:
    """Indices of the logits nearest to zero, in ascending order."""
    return jnp.sort(jnp.argsort(jnp.abs(logits), axis=-1, stable=True)[:, :count], axis=-1)


def sample_masks(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """Bilinear samples of each mask at its own points."""
    return jax.vmap(sample_map)(masks[..., None], points)[..., 0]


def sample_map(image: Float[Array, "h w C"], points: Float[Array, "*points 2"]) -> Float[Array, "*points C"]:
    """Bilinear samples of a map at points xy in [0, 1], pixel centers at half-integers, zero outside."""
    h, w, _ = image.shape
    x, y = points[..., 0] * w - 0.5, points[..., 1] * h - 0.5
    west, north = jnp.floor(x), jnp.floor(y)
    right, down = x - west, y - north  # from the pixel in the north-west, in [0, 1)

    def pixel(row, column):
        inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
        row, column = (jnp.clip(i, 0, n - 1).astype(jnp.int32) for i, n in ((row, h), (column, w)))
        return jnp.where(inside[..., None], image[row, column], 0)

    right, down = right[..., None], down[..., None]
    upper = (1 - right) * pixel(north, west) + right * pixel(north, west + 1)
    lower = (1 - right) * pixel(north + 1, west) + right * pixel(north + 1, west + 1)
    return (1 - down) * upper + down * lower


def deformable_sample(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    shapes: Shapes,
) -> Float[Array, "B Q M D"]:
    """Sample each head's map of each level at its own locations, and add the samples up by their weights."""
    sample_heads = jax.vmap(sample_map, in_axes=(2, 1), out_axes=1)  # (h, w, M, D), (Q, M, P, 2) -> (Q, M, P, D)
    sample_images = jax.vmap(sample_heads)
    samples = [
        sample_images(level_values.reshape(-1, h, w, *values.shape[2:]), locations[:, :, :, level])
        for level, (level_values, (h, w)) in enumerate(zip(split_levels(values, shapes), shapes, strict=True))
    ]
    return jnp.einsum("bqmlpd,bqmlp->bqmd", jnp.stack(samples, axis=3), weights, precision="highest")
