"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, equation 3), in pure JAX.

No compiled operator: bilinear sampling is written as gathers of rows, which XLA fuses with their weighting so that the
samples are never stored.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.layers import Dtype

__all__ = ["DeformableAttention", "deformable_sample", "reference_points"]

Shapes = Sequence[tuple[int, int]]  # (h, w) of each level


def reference_points(shapes: Shapes) -> np.ndarray:
    """Centres of all levels' tokens as xy in [0, 1], (N, 2), tokens row-major and level after level."""
    points = []
    for h, w in shapes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        points.append(np.stack([x, y], axis=-1).reshape(h * w, 2))
    return np.concatenate(points).astype(np.float32)


def deformable_sample(values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """Weighted sum of bilinear samples from several levels.

    Args:
      values: (B, N, M, D), tokens of all levels concatenated, each level row-major.
      locations: (B, Q, M, levels, P, 2), xy in [0, 1] with pixel centres at half-integers; zero outside.
      weights: (B, Q, M, levels, P).
      shapes: (h, w) of each level.

    Returns:
      (B, Q, M, D) in the dtype of `values`; coordinates, weights and the sum are float32.
    """
    b, n, m, d = values.shape
    q, points = locations.shape[1], locations.shape[4]
    rows = values.reshape(b * n * m, d)  # row (image * N + token) * M + head
    first_row = jnp.arange(b, dtype=jnp.int32)[:, None, None] * (n * m) + jnp.arange(m, dtype=jnp.int32)  # (B, 1, M)
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # (levels * P, 2)
    starts = np.repeat(np.cumsum([0] + [h * w for h, w in shapes[:-1]]).astype(np.int32), points)  # (levels * P,)
    locations = locations.transpose(3, 4, 5, 0, 1, 2).reshape(-1, 2, b, q, m)  # (levels * P, xy, B, Q, M)
    weights = weights.transpose(3, 4, 0, 1, 2).reshape(-1, b, q, m)  # (levels * P, B, Q, M)

    def add_sample(total, sample):
        (h, w), start, (x, y), weight = sample
        x, y = x * w - 0.5, y * h - 0.5
        x0, y0 = jnp.floor(x), jnp.floor(y)
        for column, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            for row, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
                inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
                corner_weight = jnp.where(inside, weight_x * weight_y * weight, 0)
                token = start + jnp.where(inside, row * w + column, 0).astype(jnp.int32)  # (B, Q, M)
                corner = rows.at[first_row + token * m].get(mode="promise_in_bounds")  # (B, Q, M, D)
                total += corner_weight[..., None] * corner
        return total, None

    # A loop over the samples, not one expression: XLA would merge that with what follows into a loop that no longer
    # copies whole rows, twice as slow on a CPU, and takes longer to compile.
    total = jnp.zeros((b, q, m, d), jnp.float32)
    total, _ = jax.lax.scan(add_sample, total, (sizes, starts, locations, weights))
    return total.astype(values.dtype)


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
