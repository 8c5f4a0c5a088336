"""What the network predicts."""

import flax.struct
import jax
import jax.numpy as jnp

__all__ = ["MASK_STRIDE", "FactoredPredictions", "Predictions"]

MASK_STRIDE = 4  # pixels of the network's input per pixel of a mask, along each axis


@flax.struct.dataclass
class Predictions:
    """Predictions of the queries; with `all_predictions` each has a leading axis L + 1, the initial queries' first.

    Attributes:
      class_logits: (B, Q, K + 1) float32, "no object" last.
      mask_logits: (B, Q, H/4, W/4) float32.
    """

    class_logits: jax.Array
    mask_logits: jax.Array


@flax.struct.dataclass
class FactoredPredictions:
    """All predictions for training, by `all_predictions="factored"`: masks as the two factors of their product.

    The loss needs the masks of one prediction at a time, and the gradient of the matched ones alone.

    Attributes:
      class_logits: (L+1, B, Q, K + 1) float32, "no object" last.
      mask_embeddings: (L+1, B, Q, C) float32.
      mask_features: (B, H/4, W/4, C) float32, the same for all.
    """

    class_logits: jax.Array
    mask_embeddings: jax.Array
    mask_features: jax.Array

    @property
    def mask_logits(self) -> jax.Array:
        """(L+1, B, Q, H/4, W/4) float32; computed at every call."""
        return mask_product(self.mask_embeddings, self.mask_features)


def mask_product(embeddings: jax.Array, features: jax.Array) -> jax.Array:
    """Mask logits of embeddings (..., B, Q, C) and features (B, h, w, C): (..., B, Q, h, w) float32."""
    return jnp.einsum("...bqc,bhwc->...bqhw", embeddings, features, precision="highest")
