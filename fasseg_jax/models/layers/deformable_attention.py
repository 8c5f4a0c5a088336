"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, equation 3), in pure JAX.

No operator to be built: bilinear sampling is written as gathers of rows, which XLA fuses with their weighting so that
the samples are never stored. A TPU, slow at gathers, samples by dense products instead (`deformable_attention_dense`),
an NVIDIA GPU in one kernel (`deformable_attention_fused`), both by Pallas, a part of JAX.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from fasseg_jax.models.layers.initializers import Dtype
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.ops.deformable.sampling import deformable_sample

__all__ = ["DeformableAttention", "SAMPLED", "reference_points"]

SAMPLED = "sampled"  # name of what rematerialisation may keep


def reference_points(shapes: Shapes) -> np.ndarray:
    """Centres of all levels' tokens as xy in [0, 1], (N, 2), tokens row-major and level after level."""
    points = []
    for h, w in shapes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        points.append(np.stack([x, y], axis=-1).reshape(h * w, 2))
    return np.concatenate(points).astype(np.float32)


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
    method: str = "auto"  # of `deformable_sample`
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
        sampled = deformable_sample(values, locations, weights, shapes, self.method)
        sampled = checkpoint_name(sampled.reshape(b, n, c), SAMPLED)  # (B, N, M, D) -> (B, N, C)
        return linear("output_proj")(sampled)
