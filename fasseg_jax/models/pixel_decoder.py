"""Pixel decoder: deformable attention over strides 32, 16, 8 and an FPN level at stride 4 (SPEC section 3)."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.models.layers.deformable_attention import SAMPLED, DeformableAttention
from fasseg_jax.models.layers.initializers import Dtype, he_uniform_a1
from fasseg_jax.models.layers.linear import DepthwiseConv, PointwiseConv, torch_linear
from fasseg_jax.models.layers.norms import LayerNorm
from fasseg_jax.models.layers.position_encoding import sine_positions
from fasseg_jax.ops.activations import relu
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.ops.layer_norm import EPSILON
from fasseg_jax.ops.resize import resize_bilinear

__all__ = ["PixelDecoder", "PixelFeatures"]


@flax.struct.dataclass
class PixelFeatures:
    """What the decoder attends to. Tuples hold one map (B, H/s, W/s, C) for each stride s = 32, 16, 8, 4.

    Attributes:
      features: the maps.
      positions: their positional encodings; without HRCA the one at stride 4 is None.
      mask_features: (B, H/4, W/4, C), whose products with the mask embeddings are the mask logits.
    """

    features: tuple[jax.Array, ...]
    positions: tuple[jax.Array | None, ...]
    mask_features: jax.Array


def group_norm(dtype: Dtype, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(32, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)


class EncoderLayer(nn.Module):
    """Deformable self attention and a feed-forward network over tokens (B, N, C), post-norm."""

    num_heads: int
    num_points: int
    ffn_dim: int
    deformable_attention: str
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, shapes: Shapes) -> jax.Array:
        c, xavier = x.shape[-1], nn.initializers.xavier_uniform()
        attention = DeformableAttention(
            self.num_heads, self.num_points, self.deformable_attention, self.dtype, name="attention"
        )
        x = LayerNorm(self.dtype, name="norm1")(x + attention(x + positions, x, shapes))
        y = relu(torch_linear(c, self.ffn_dim, self.dtype, xavier, "linear1")(x))
        y = torch_linear(self.ffn_dim, c, self.dtype, xavier, "linear2")(y)
        return LayerNorm(self.dtype, name="norm2")(x + y)


class PixelDecoder(nn.Module):
    """[res2, res3, res4, res5] of a backbone -> `PixelFeatures`.

    `deformable_attention` is how it samples: "auto", "gather", "dense" or "fused" (see `deformable_sample`).
    `key_positions` is "conditional" (a depthwise 3x3 convolution of the projected features) or "sine". The positions at
    stride 4, which only HRCA needs, are made if `high_resolution_positions`.
    """

    hidden_dim: int
    num_heads: int
    num_layers: int
    num_points: int
    ffn_dim: int
    key_positions: str
    high_resolution_positions: bool
    deformable_attention: str
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, backbone_features: list[jax.Array]) -> PixelFeatures:
        res2, res3, res4, res5 = backbone_features
        projected = [self._project(i, feature) for i, feature in enumerate((res5, res4, res3))]  # strides 32, 16, 8
        positions = [self._positions(i, feature) for i, feature in enumerate(projected)]
        positions.append(self._high_resolution_positions(res2))

        encoded = self._encode(projected, positions[:3])

        # The FPN level at stride 4.
        y = PointwiseConv(self.hidden_dim, 1, False, self.dtype, he_uniform_a1, name="lateral")(res2)
        y = group_norm(self.dtype, "lateral_norm")(y) + resize_bilinear(encoded[2], y.shape[1:3])
        y = nn.Conv(
            self.hidden_dim,
            (3, 3),
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_uniform_a1,
            name="output_conv",
        )(y)
        y = relu(group_norm(self.dtype, "output_norm")(y))
        # float32, as the mask logits that are formed from them
        mask_features = PointwiseConv(
            self.hidden_dim, dtype=jnp.float32, kernel_init=he_uniform_a1, name="mask_features"
        )(y)
        return PixelFeatures((*encoded, y), tuple(positions), mask_features)

    def _project(self, i: int, feature: jax.Array) -> jax.Array:
        x = PointwiseConv(self.hidden_dim, dtype=self.dtype, name=f"input_proj_{i}")(feature)
        return group_norm(self.dtype, f"input_norm_{i}")(x)

    def _positions(self, i: int, projected: jax.Array) -> jax.Array:
        if self.key_positions == "sine":
            encoding = sine_positions(*projected.shape[1:]).astype(self.dtype)
            return jnp.broadcast_to(encoding, projected.shape)
        return DepthwiseConv(self.dtype, name=f"pos_conv_{i}")(projected)

    def _high_resolution_positions(self, res2: jax.Array) -> jax.Array | None:
        if not self.high_resolution_positions:
            return None
        if self.key_positions == "sine":
            return self._positions(3, jnp.zeros((*res2.shape[:3], self.hidden_dim), self.dtype))
        return self._positions(3, self._project(3, res2))

    def _encode(self, maps: list[jax.Array], positions: list[jax.Array]) -> list[jax.Array]:
        """Encoder over the tokens of all maps together; returns maps of the same shapes."""
        b, c = maps[0].shape[0], self.hidden_dim
        shapes = tuple(feature.shape[1:3] for feature in maps)
        level_embed = self.param("level_embed", nn.initializers.normal(1.0), (len(maps), c)).astype(self.dtype)
        tokens = jnp.concatenate([x.reshape(b, -1, c) for x in maps], axis=1)  # (B, h, w, C) -> (B, N, C)
        positions = jnp.concatenate(
            [(p + level_embed[i]).reshape(b, -1, c) for i, p in enumerate(positions)], axis=1
        )  # (B, N, C)
        tokens = self._scan_layers(tokens, positions, shapes)
        ends = np.cumsum([h * w for h, w in shapes])[:-1].tolist()
        parts = jnp.split(tokens, ends, axis=1)
        return [part.reshape(b, h, w, c) for part, (h, w) in zip(parts, shapes, strict=True)]  # (B, N_s, C) -> map

    def _scan_layers(self, tokens: jax.Array, positions: jax.Array, shapes: Shapes) -> jax.Array:
        """All encoder layers, as one loop over their stacked parameters.

        A layer is compiled once, not six times; and in training the gradients of a layer's parameters are found before
        those of the layer below, as XLA's scheduler would not have it, which keeps far fewer activations in memory.
        """
        arguments = self.num_heads, self.num_points, self.ffn_dim, self.deformable_attention, self.dtype
        layers = [EncoderLayer(*arguments, name=f"encoder_{i}") for i in range(self.num_layers)]
        if self.is_initializing():
            for layer in layers:
                tokens = layer(tokens, positions, shapes)
            return tokens

        any_layer = layers[0].clone(parent=None)  # in profiles all go by the name of the first

        def apply(tokens, params):
            return any_layer.apply({"params": params}, tokens, positions, shapes), None

        params = jax.tree.map(lambda *each: jnp.stack(each), *[layer.variables["params"] for layer in layers])
        # For the backward pass a layer keeps its input and its samples, the dear part, a sixth of all; the rest it
        # computes again.
        kept = jax.checkpoint_policies.save_only_these_names(SAMPLED)
        return jax.lax.scan(jax.checkpoint(apply, policy=kept, prevent_cse=False), tokens, params)[0]
