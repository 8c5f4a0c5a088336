"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, equation 3), in pure JAX.

No compiled operator: bilinear sampling is written as gathers of rows, which XLA fuses with their weighting so that the
samples are never stored.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.layers import Dtype

__all__ = ["DeformableAttention", "deformable_sample", "reference_points"]

Shapes = tuple[tuple[int, int], ...]  # (h, w) of each level


def reference_points(shapes: Shapes) -> np.ndarray:
    """Centres of all levels' tokens as xy in [0, 1], (N, 2), tokens row-major and level after level."""
    points = []
    for h, w in shapes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        points.append(np.stack([x, y], axis=-1).reshape(h * w, 2))
    return np.concatenate(points).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def deformable_sample(values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """Weighted sum of bilinear samples from several levels.

    The derivative is written by hand: it takes half the time of the automatic one, and keeps no samples in memory.

    Args:
      values: (B, N, M, D), tokens of all levels concatenated, each level row-major.
      locations: (B, Q, M, levels, P, 2), xy in [0, 1] with pixel centres at half-integers; zero outside.
      weights: (B, Q, M, levels, P).
      shapes: (h, w) of each level, a tuple of tuples.

    Returns:
      (B, Q, M, D) in the dtype of `values`; coordinates, weights and the sum are float32.
    """
    rows, first_row = _rows(values)

    def add_sample(total, sample):
        size, start, xy, weight = sample
        for corner in _corners(xy, size):
            row = first_row + (start + corner.token) * values.shape[2]  # (B, Q, M)
            near = jnp.where(corner.inside, corner.near_x * corner.near_y * weight, 0)
            total += near[..., None] * rows.at[row].get(mode="promise_in_bounds")  # (B, Q, M, D)
        return total, None

    # A loop over the samples, not one expression: XLA would merge that with what follows into a loop that no longer
    # copies whole rows, twice as slow on a CPU, and takes longer to compile.
    total = jnp.zeros((*locations.shape[:3], values.shape[3]), jnp.float32)
    total, _ = jax.lax.scan(add_sample, total, _samples(locations, weights, shapes))
    return total.astype(values.dtype)


def _sample_forward(values, locations, weights, shapes):
    return deformable_sample(values, locations, weights, shapes), (values, locations, weights)


def _sample_backward(shapes, inputs, gradient):
    """Gradients of values, locations and weights, from that of the output (B, Q, M, D)."""
    values, locations, weights = inputs
    rows, first_row = _rows(values)
    gradient = gradient.astype(jnp.float32)

    def add_sample(rows_gradient, sample):
        (h, w), start, xy, weight = sample
        x_gradient = y_gradient = weight_gradient = 0.0
        for corner in _corners(xy, (h, w)):
            row = first_row + (start + corner.token) * values.shape[2]  # (B, Q, M)
            product = (rows.at[row].get(mode="promise_in_bounds") * gradient).sum(axis=-1)  # (B, Q, M)
            product = jnp.where(corner.inside, product, 0)
            weight_gradient += corner.near_x * corner.near_y * product
            x_gradient += corner.slope_x * corner.near_y * weight * product * w
            y_gradient += corner.slope_y * corner.near_x * weight * product * h
            near = jnp.where(corner.inside, corner.near_x * corner.near_y * weight, 0)
            rows_gradient = rows_gradient.at[row].add(near[..., None] * gradient, mode="promise_in_bounds")
        return rows_gradient, (jnp.stack([x_gradient, y_gradient]), weight_gradient)

    start = jnp.zeros(rows.shape, jnp.float32)
    rows_gradient, by_sample = jax.lax.scan(add_sample, start, _samples(locations, weights, shapes))
    by_level = (x.reshape(len(shapes), -1, *x.shape[1:]) for x in by_sample)  # (levels, P, ...)
    locations_gradient, weights_gradient = by_level
    return (
        rows_gradient.reshape(values.shape).astype(values.dtype),
        locations_gradient.transpose(3, 4, 5, 0, 1, 2),  # (levels, P, xy, B, Q, M) -> (B, Q, M, levels, P, xy)
        weights_gradient.transpose(2, 3, 4, 0, 1),  # (levels, P, B, Q, M) -> (B, Q, M, levels, P)
    )


deformable_sample.defvjp(_sample_forward, _sample_backward)


def _rows(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values as rows (B * N * M, D), row (image * N + token) * M + head; the first of each image and head (B, 1, M)."""
    b, n, m, d = values.shape
    first_row = jnp.arange(b, dtype=jnp.int32)[:, None, None] * (n * m) + jnp.arange(m, dtype=jnp.int32)
    return values.reshape(b * n * m, d), first_row


def _samples(locations: jax.Array, weights: jax.Array, shapes: Shapes) -> tuple:
    """What a loop over the levels * P samples takes: a level's (h, w), its first token, xy and weight of the sample."""
    b, q, m, _, points, _ = locations.shape
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # (levels * P, 2)
    starts = np.repeat(np.cumsum([0] + [h * w for h, w in shapes[:-1]]).astype(np.int32), points)  # (levels * P,)
    locations = locations.transpose(3, 4, 5, 0, 1, 2).reshape(-1, 2, b, q, m)  # (levels * P, xy, B, Q, M)
    return (sizes[:, 0], sizes[:, 1]), starts, locations, weights.transpose(3, 4, 0, 1, 2).reshape(-1, b, q, m)


class _Corner(NamedTuple):
    """One of the four pixels around each sample, all (B, Q, M): its token, how near it is, and the slopes of that."""

    inside: jax.Array
    token: jax.Array
    near_x: jax.Array
    near_y: jax.Array
    slope_x: float
    slope_y: float


def _corners(xy: jax.Array, size: tuple[jax.Array, jax.Array]) -> Iterator[_Corner]:
    (x, y), (h, w) = xy, size
    x, y = x * w - 0.5, y * h - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)
    for column, near_x, slope_x in ((x0, x0 + 1 - x, -1.0), (x0 + 1, x - x0, 1.0)):
        for row, near_y, slope_y in ((y0, y0 + 1 - y, -1.0), (y0 + 1, y - y0, 1.0)):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            token = jnp.where(inside, row * w + column, 0).astype(jnp.int32)
            yield _Corner(inside, token, near_x, near_y, slope_x, slope_y)


def compass_bias(num_heads: int, levels: int, points: int):
    """Initial offsets: point p of head m lies p + 1 pixels along the m-th compass direction (max-norm 1)."""

    def init(key, shape, dtype=jnp.float32):
        del key
        angle = 2 * np.pi * np.arange(num_heads) / num_heads
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        direction /= np.abs(direction).max(axis=-1, keepdims=True)
        steps = np.arange(1, points + 1)[:, None]
        offsets = np.broadcast_to((direction[:, None] * steps)[:, None], (num_heads, levels, points, 2))
        return jnp.asarray(offsets.reshape(shape), dtype)  # (M, levels, P, 2) -> (M * levels * P * 2,)

    return init


class DeformableAttention(nn.Module):
    """Each token gathers `num_points` samples per head and level around its own place.

    queries (B, N, C) decide offsets and weights, values (B, N, C) are sampled; both hold the tokens of all levels.
    """

    num_heads: int
    num_points: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, values: jax.Array, shapes: Shapes) -> jax.Array:
        b, n, c = values.shape
        heads, levels, points = self.num_heads, len(shapes), self.num_points
        # Coordinates and softmax in float32: bfloat16 places a sample only to a thirty-second of a pixel at offset 8.
        offsets = nn.Dense(
            heads * levels * points * 2,
            dtype=jnp.float32,
            kernel_init=nn.initializers.zeros,
            bias_init=compass_bias(heads, levels, points),
            name="sampling_offsets",
        )(queries)
        logits = nn.Dense(
            heads * levels * points, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="attention_weights"
        )(queries)
        linear = lambda name: nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)

        offsets = offsets.reshape(b, n, heads, levels, points, 2)
        weights = jax.nn.softmax(logits.reshape(b, n, heads, levels * points))
        weights = weights.reshape(b, n, heads, levels, points)
        size = np.array([(w, h) for h, w in shapes], np.float32)  # (levels, 2), as offsets are in pixels of a level
        locations = reference_points(shapes)[:, None, None, None] + offsets / size[:, None]
        values = linear("value_proj")(values).reshape(b, n, heads, c // heads)
        sampled = deformable_sample(values, locations, weights, shapes)
        return linear("output_proj")(sampled.reshape(b, n, c))
