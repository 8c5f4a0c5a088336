"""The transformer decoder: FASeg's, or Mask2Former's where FASeg's contributions are off.

docs/specification.md, section 4. Layers cycle over strides 32, 16, 8 and, with HRCA, 4. Before each layer the current
queries predict masks, inside which its cross attention may look. With DFPQ each layer's attention makes the positional
queries of the next.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fasseg_jax.models import dfpq, hrca
from fasseg_jax.models.layers.attention import MultiheadAttention
from fasseg_jax.models.layers.linear import torch_linear
from fasseg_jax.models.layers.norms import LayerNorm
from fasseg_jax.models.pixel_decoder import PixelFeatures
from fasseg_jax.models.predictions import FactoredPredictions, Predictions, mask_product
from fasseg_jax.ops.activations import relu
from fasseg_jax.ops.resize import resize_bilinear

__all__ = ["Decoder"]

HIGH_RESOLUTION = 3  # index of stride 4 among the scales


class DecoderLayer(nn.Module):
    """Cross attention, self attention and a feed-forward network over queries, post-norm.

    Called with the queries, their positions in the two attentions, the keys and values (`memory`), the keys' positions,
    and where each query may look (None: everywhere). Returns the updated queries and the cross attention.
    """

    num_heads: int
    ffn_dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q C"],
        cross_positions: Float[Array, "B Q C"],
        self_positions: Float[Array, "B Q C"],
        memory: Float[Array, "B N C"],
        memory_positions: Float[Array, "B N C"],
        allowed: Bool[Array, "B Q N"] | None,
    ) -> tuple[Float[Array, "B Q C"], Float[Array, "B Q N"]]:
        c, xavier = x.shape[-1], nn.initializers.xavier_uniform()
        cross_attention = MultiheadAttention(self.num_heads, self.dtype, name="cross_attention")
        y, attention = cross_attention(x + cross_positions, memory + memory_positions, memory, allowed)
        x = LayerNorm(self.dtype, name="cross_norm")(x + y)
        positioned = x + self_positions
        y, _ = MultiheadAttention(self.num_heads, self.dtype, name="self_attention")(positioned, positioned, x)
        x = LayerNorm(self.dtype, name="self_norm")(x + y)
        y = relu(torch_linear(c, self.ffn_dim, self.dtype, xavier, "linear1")(x))
        y = torch_linear(self.ffn_dim, c, self.dtype, xavier, "linear2")(y)
        return LayerNorm(self.dtype, name="ffn_norm")(x + y), attention


class Decoder(nn.Module):
    """`PixelFeatures` -> predictions. The fields are those of `config.model.decoder` (see `fasseg_jax.config`).

    Sows, for callers that ask for the collection `intermediates`: `query_positions` (B, Q, C) in order of creation,
    `attention` (B, Q, N) of each layer, `hrca_windows` (B, k) or `hrca_pixels` (B, 64 k) of each HRCA layer.
    """

    num_classes: int
    hidden_dim: int
    num_heads: int
    num_queries: int
    num_layers: int
    ffn_dim: int
    mask_threshold: float
    positional_queries: str
    first_focus: str
    hrca: bool
    hrca_omega: int
    hrca_selection: str
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        c, normal = self.hidden_dim, nn.initializers.normal(1.0)
        self.query_feat = self.param("query_feat", normal, (self.num_queries, c))
        self.query_embed = self.param("query_embed", normal, (self.num_queries, c))
        self.level_embed = self.param("level_embed", normal, (self.num_scales, c))
        layer_type = nn.remat(DecoderLayer) if self.remat else DecoderLayer
        self.layer = [layer_type(self.num_heads, self.ffn_dim, self.dtype) for _ in range(self.num_layers)]
        if self.positional_queries == "dfpq":
            self.adapt_pos2d = [torch_linear(c, c, self.dtype) for _ in range(2)]
        self.decoder_norm = LayerNorm(self.dtype)
        self.class_embed = torch_linear(c, self.num_classes + 1, jnp.float32)
        self.mask_embed = [torch_linear(c, c, self.dtype) for _ in range(3)]

    @property
    def num_scales(self) -> int:
        return 4 if self.hrca else 3

    def __call__(
        self, pixels: PixelFeatures, all_predictions: bool | Literal["factored"] = False
    ) -> Predictions | FactoredPredictions:
        x, embed = (self._for_each_image(table, pixels) for table in (self.query_feat, self.query_embed))
        # Resizing and the mask product are both linear: attention masks need the mask features resized once a scale.
        resized = [resize_bilinear(pixels.mask_features, _size(f)) for f in pixels.features[:HIGH_RESOLUTION]]

        predictions = [self._predict(x)] if all_predictions else []
        query_positions = self._first_query_positions(x, embed, pixels, resized[0])
        latest: dict[int, jax.Array] = {}  # the latest attention at each scale
        for i, layer in enumerate(self.layer):
            scale = i % self.num_scales
            if scale == HIGH_RESOLUTION:
                memory, memory_positions = self._high_resolution_memory(latest[0], pixels)
                x, attention = layer(x, embed, query_positions, memory, memory_positions, None)
            else:
                memory, memory_positions = self._memory(pixels, scale)
                allowed = self._allowed(x, resized[scale])
                x, attention = layer(x, query_positions, query_positions, memory, memory_positions, allowed)
                query_positions = self._next_query_positions(attention, memory_positions, embed)
            latest[scale] = attention
            self.sow("intermediates", "attention", attention)
            if all_predictions:
                predictions.append(self._predict(x))
        return self._output(predictions or [self._predict(x)], pixels.mask_features, all_predictions)

    def _for_each_image(self, table: jax.Array, pixels: PixelFeatures) -> jax.Array:
        """A learned table (Q, C) as (B, Q, C)."""
        return jnp.broadcast_to(table.astype(self.dtype), (pixels.mask_features.shape[0], *table.shape))

    # Prediction heads

    def _predict(self, x: Float[Array, "B Q C"]) -> tuple[Float[Array, "B Q classes"], Float[Array, "B Q C"]]:
        """Class logits of the K classes and "no object", float32, and mask embeddings."""
        normed = self.decoder_norm(x)
        embeddings = normed
        for linear in self.mask_embed[:-1]:
            embeddings = relu(linear(embeddings))
        return self.class_embed(normed), self.mask_embed[-1](embeddings)

    def _output(self, predictions, mask_features, all_predictions) -> Predictions | FactoredPredictions:
        """The last of `predictions`, or all of them in the form that is asked for."""
        if not all_predictions:
            class_logits, embeddings = predictions[-1]
            return Predictions(class_logits, mask_product(embeddings, mask_features))
        class_logits, embeddings = (jnp.stack(each) for each in zip(*predictions, strict=True))  # (L + 1, B, Q, ...)
        factored = FactoredPredictions(class_logits, embeddings, mask_features)
        return factored if all_predictions == "factored" else Predictions(class_logits, factored.mask_logits)

    def _mask_probabilities(
        self, x: Float[Array, "B Q C"], mask_features: Float[Array, "B h w C"]
    ) -> Float[Array, "B Q h*w"]:
        """Predicted masks as probabilities over tokens; they steer attention and carry no gradient."""
        _, embeddings = self._predict(x)
        logits = mask_product(embeddings, mask_features)
        probabilities = jax.nn.sigmoid(logits).reshape(*x.shape[:2], -1)  # (B, Q, h, w) -> (B, Q, N)
        return jax.lax.stop_gradient(probabilities)

    def _allowed(self, x: Float[Array, "B Q C"], mask_features: Float[Array, "B h w C"]) -> Bool[Array, "B Q h*w"]:
        """Which tokens the next attention may look at: those in the predicted mask, all if it is empty."""
        allowed = self._mask_probabilities(x, mask_features) >= self.mask_threshold
        return allowed | ~allowed.any(axis=-1, keepdims=True)

    # Keys and values

    def _memory(self, pixels: PixelFeatures, scale: int) -> tuple[Float[Array, "B N C"], Float[Array, "B N C"]]:
        """All tokens of an ordinary layer's scale and their positions."""
        feature, position = pixels.features[scale], pixels.positions[scale]
        memory = feature + self.level_embed[scale].astype(self.dtype)
        tokens = (feature.shape[0], -1, self.hidden_dim)
        return memory.reshape(tokens), position.reshape(tokens)  # (B, h, w, C) -> (B, N, C)

    def _high_resolution_memory(
        self, attention_32: Float[Array, "B Q N"], pixels: PixelFeatures
    ) -> tuple[Float[Array, "B n C"], Float[Array, "B n C"]]:
        """The stride-4 tokens that HRCA selects, n = 64 k, and their positions."""
        h, w = _size(pixels.features[0])
        if self.hrca_selection == "window":
            windows = hrca.select_windows(attention_32, self.hrca_omega)
            self.sow("intermediates", "hrca_windows", windows)
            tokens = hrca.window_tokens(windows, w)
        else:
            tokens = hrca.select_pixels(attention_32, self.hrca_omega, (h, w))
            self.sow("intermediates", "hrca_pixels", tokens)
        memory = hrca.gather_tokens(pixels.features[HIGH_RESOLUTION], tokens)
        memory_positions = hrca.gather_tokens(pixels.positions[HIGH_RESOLUTION], tokens)
        return memory + self.level_embed[HIGH_RESOLUTION].astype(self.dtype), memory_positions

    # Positional queries

    def _adapt(self, focus: Float[Array, "B Q C"], embed: Float[Array, "B Q C"]) -> Float[Array, "B Q C"]:
        """q_pos = h(A . P_s + E), where h is a two-layer perceptron that all layers share."""
        first, second = self.adapt_pos2d
        query_positions = second(relu(first(focus + embed)))
        self.sow("intermediates", "query_positions", query_positions)
        return query_positions

    def _first_query_positions(
        self,
        x: Float[Array, "B Q C"],
        embed: Float[Array, "B Q C"],
        pixels: PixelFeatures,
        mask_features: Float[Array, "B h w C"],
    ) -> Float[Array, "B Q C"]:
        if self.positional_queries == "learned":
            return embed
        attention = dfpq.first_focus(self._mask_probabilities(x, mask_features), self.first_focus)
        _, positions = self._memory(pixels, 0)
        return self._adapt(dfpq.focus_positions(attention, positions), embed)

    def _next_query_positions(
        self, attention: Float[Array, "B Q N"], positions: Float[Array, "B N C"], embed: Float[Array, "B Q C"]
    ) -> Float[Array, "B Q C"]:
        if self.positional_queries == "learned":
            return embed
        return self._adapt(dfpq.focus_positions(attention, positions), embed)


def _size(x: Float[Array, "B h w C"]) -> tuple[int, int]:
    return x.shape[1], x.shape[2]
