"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, equation 3).

It needs no compiled operator: `fasseg_jax.ops.deformable` samples in pure JAX or by kernels of Pallas, a part of JAX.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasseg_jax.models.layers.initializers import Initializer
from fasseg_jax.models.layers.linear import Dense
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.ops.deformable.sampling import deformable_sample

__all__ = ["SAMPLED", "DeformableAttention", "compass_bias", "reference_points"]

SAMPLED = "sampled"  # name of the sampled values, which rematerialization may save


def reference_points(shapes: Shapes) -> Float[np.ndarray, "N 2"]:
    """Centers of all levels' tokens as xy in [0, 1], one level after the other, each row-major."""
    points = []
    for h, w in shapes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        points.append(np.stack([x, y], axis=-1).reshape(h * w, 2))
    return np.concatenate(points).astype(np.float32)


def compass_bias(num_heads: int, levels: int, points: int) -> Initializer:
    """Initial offsets: point p of head m lies p + 1 pixels along the m-th compass direction (max-norm 1)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del key, out_sharding
        angle = 2 * np.pi * np.arange(num_heads) / num_heads
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        direction /= np.abs(direction).max(axis=-1, keepdims=True)
        steps = np.arange(1, points + 1)[:, None]
        offsets = np.broadcast_to((direction[:, None] * steps)[:, None], (num_heads, levels, points, 2))
        return jnp.asarray(offsets.reshape(shape), dtype)  # (M, levels, P, 2) -> (M * levels * P * 2,)

    return init


class DeformableAttention(nn.Module):
    """Each token attends to `num_points` samples per head and level around its own position.

    The queries decide offsets and weights, the values are sampled; both hold the tokens of all levels.
    """

    num_heads: int
    num_points: int
    method: str = "auto"  # of `deformable_sample`
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, queries: Float[Array, "B N C"], values: Float[Array, "B N C"], shapes: Shapes
    ) -> Float[Array, "B N C"]:
        b, n, c = values.shape
        heads, levels, points = self.num_heads, len(shapes), self.num_points
        offsets = self._offsets(queries, levels).reshape(b, n, heads, levels, points, 2)
        weights = self._weights(queries, levels).reshape(b, n, heads, levels, points)
        size = np.array([(w, h) for h, w in shapes], np.float32)  # (levels, 2), as offsets are in pixels of a level
        locations = reference_points(shapes)[:, None, None, None] + offsets / size[:, None]
        values = self._linear(c, "value_proj")(values).reshape(b, n, heads, c // heads)
        sampled = deformable_sample(values, locations, weights, shapes, self.method)
        sampled = checkpoint_name(sampled.reshape(b, n, c), SAMPLED)  # (B, N, M, D) -> (B, N, C)
        return self._linear(c, "output_proj")(sampled)

    def _linear(self, features, name):
        return Dense(features, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)

    # Offsets and weights are float32: in bfloat16 a sample at offset 8 lies only within a thirty-second of a pixel.

    def _offsets(self, queries, levels):
        return Dense(
            self.num_heads * levels * self.num_points * 2,
            dtype=jnp.float32,
            kernel_init=nn.initializers.zeros,
            bias_init=compass_bias(self.num_heads, levels, self.num_points),
            name="sampling_offsets",
        )(queries)

    def _weights(self, queries, levels):
        """The softmax over a head's levels * points samples."""
        logits = Dense(
            self.num_heads * levels * self.num_points,
            dtype=jnp.float32,
            kernel_init=nn.initializers.zeros,
            name="attention_weights",
        )(queries)
        # Without the batch as an axis of its own: one image would fill an eighth of its place in a TPU's registers.
        return jax.nn.softmax(logits.reshape(-1, self.num_heads, levels * self.num_points))
