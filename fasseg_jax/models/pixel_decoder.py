"""Pixel decoder: deformable attention over strides 32, 16 and 8, and an FPN level at stride 4.

docs/specification.md, section 3.
"""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasseg_jax.models.layers.deformable_attention import SAMPLED, DeformableAttention
from fasseg_jax.models.layers.initializers import he_uniform_a1
from fasseg_jax.models.layers.linear import DepthwiseConv, PointwiseConv, torch_linear
from fasseg_jax.models.layers.norms import LayerNorm, group_norm
from fasseg_jax.models.layers.position_encoding import sine_positions
from fasseg_jax.ops.activations import relu
from fasseg_jax.ops.convolution import convolve
from fasseg_jax.ops.deformable.geometry import Shapes, split_levels
from fasseg_jax.ops.resize import resize_bilinear

__all__ = ["PixelDecoder", "PixelFeatures"]

Map = Float[Array, "B h w C"]


@flax.struct.dataclass
class PixelFeatures:
    """What the transformer decoder attends to. Tuples hold a map for each stride s = 32, 16, 8, 4.

    Attributes:
      features: the maps, (B, H/s, W/s, C).
      positions: their positional encodings; without HRCA there is none at stride 4.
      mask_features: float32; the mask logits are their products with the mask embeddings.
    """

    features: tuple[Map, ...]
    positions: tuple[Map, ...]
    mask_features: Float[Array, "B H/4 W/4 C"]


class EncoderLayer(nn.Module):
    """Deformable self attention and a feed-forward network over the tokens of all levels, post-norm."""

    num_heads: int
    num_points: int
    ffn_dim: int
    deformable_attention: str
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B N C"], positions: Float[Array, "B N C"], shapes: Shapes
    ) -> Float[Array, "B N C"]:
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

    `deformable_attention` is a method of `deformable_sample`. `key_positions` is "conditional" (a depthwise 3x3
    convolution of the projected features) or "sine". `high_resolution_positions` makes the positions at stride 4 too,
    which only HRCA needs.
    """

    hidden_dim: int
    num_heads: int
    num_layers: int
    num_points: int
    ffn_dim: int
    key_positions: str
    high_resolution_positions: bool
    deformable_attention: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, backbone_features: list[Float[Array, "B _ _ _"]]) -> PixelFeatures:
        res2, res3, res4, res5 = backbone_features
        projected = [self._project(i, feature) for i, feature in enumerate((res5, res4, res3))]  # strides 32, 16, 8
        positions = [self._positions(i, feature) for i, feature in enumerate(projected)]
        high_resolution = [self._high_resolution_positions(res2)] if self.high_resolution_positions else []
        encoded = self._encode(projected, positions)
        y = self._fpn(res2, encoded[-1])
        # float32, because the mask logits are formed from them.
        mask_features = PointwiseConv(
            self.hidden_dim, dtype=jnp.float32, kernel_init=he_uniform_a1, name="mask_features"
        )(y)
        return PixelFeatures((*encoded, y), (*positions, *high_resolution), mask_features)

    def _project(self, i: int, feature: jax.Array) -> jax.Array:
        x = PointwiseConv(self.hidden_dim, dtype=self.dtype, name=f"input_proj_{i}")(feature)
        return group_norm(self.dtype, f"input_norm_{i}")(x)

    def _positions(self, i: int, projected: jax.Array) -> jax.Array:
        if self.key_positions == "sine":
            encoding = sine_positions(*projected.shape[1:]).astype(self.dtype)
            return jnp.broadcast_to(encoding, projected.shape)
        return DepthwiseConv(self.dtype, name=f"pos_conv_{i}")(projected)

    def _high_resolution_positions(self, res2: jax.Array) -> jax.Array:
        if self.key_positions == "sine":
            return self._positions(3, jnp.zeros((*res2.shape[:3], self.hidden_dim), self.dtype))
        return self._positions(3, self._project(3, res2))

    def _fpn(self, res2: jax.Array, encoded_8: jax.Array) -> jax.Array:
        """The level at stride 4: res2 and the encoder's map at stride 8, upsampled, through a 3x3 convolution."""
        y = PointwiseConv(self.hidden_dim, 1, False, self.dtype, he_uniform_a1, name="lateral")(res2)
        _, h, w, _ = y.shape
        y = group_norm(self.dtype, "lateral_norm")(y) + resize_bilinear(encoded_8, (h, w))
        y = nn.Conv(
            self.hidden_dim,
            (3, 3),
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_uniform_a1,
            conv_general_dilated=convolve,
            name="output_conv",
        )(y)
        return relu(group_norm(self.dtype, "output_norm")(y))

    def _encode(self, maps: list[jax.Array], positions: list[jax.Array]) -> list[jax.Array]:
        """The encoder over the tokens of all maps together; returns maps of the same shapes."""
        b, c = maps[0].shape[0], self.hidden_dim
        shapes = tuple((x.shape[1], x.shape[2]) for x in maps)
        level_embed = self.param("level_embed", nn.initializers.normal(1.0), (len(maps), c)).astype(self.dtype)
        tokens = jnp.concatenate([x.reshape(b, -1, c) for x in maps], axis=1)  # (B, h, w, C) -> (B, N, C)
        token_positions = jnp.concatenate(
            [(p + level_embed[i]).reshape(b, -1, c) for i, p in enumerate(positions)], axis=1
        )  # (B, N, C)
        tokens = self._scan_layers(tokens, token_positions, shapes)
        return [
            level.reshape(b, h, w, c) for level, (h, w) in zip(split_levels(tokens, shapes), shapes, strict=True)
        ]  # (B, h * w, C) -> map

    def _scan_layers(self, tokens: jax.Array, positions: jax.Array, shapes: Shapes) -> jax.Array:
        """All encoder layers as one loop over their stacked parameters.

        XLA compiles a layer once, not six times. In training the loop finds the gradients of a layer's parameters
        before those of the layer below. XLA's scheduler would not do so by itself, and would keep far more activations
        in memory.
        """
        fields = self.num_heads, self.num_points, self.ffn_dim, self.deformable_attention, self.dtype
        layers = [EncoderLayer(*fields, name=f"encoder_{i}") for i in range(self.num_layers)]
        if self.is_initializing():
            for layer in layers:
                tokens = layer(tokens, positions, shapes)
            return tokens

        any_layer = layers[0].clone(parent=None)  # profiles show all layers under the name of the first

        def apply(tokens, params):
            return any_layer.apply({"params": params}, tokens, positions, shapes), None

        params = jax.tree.map(lambda *each: jnp.stack(each), *[layer.variables["params"] for layer in layers])
        # Save only each layer's input and its sampled values, which are expensive to recompute and take a sixth of the
        # memory; rematerialize the rest.
        policy = jax.checkpoint_policies.save_only_these_names(SAMPLED)
        return jax.lax.scan(jax.checkpoint(apply, policy=policy, prevent_cse=False), tokens, params)[0]
