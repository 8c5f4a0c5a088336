"""What the network predicts."""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["MASK_STRIDE", "FactoredPredictions", "Predictions", "mask_precision", "mask_product"]

MASK_STRIDE = 4  # pixels of the network's input per pixel of a mask, along each axis


@flax.struct.dataclass
class Predictions:
    """Predictions of the queries; with `all_predictions` each has a leading axis L + 1, the initial queries' first.

    Attributes:
      class_logits: of the K classes and, last, "no object"; float32.
      mask_logits: at stride 4, float32.
    """

    class_logits: Float[Array, "*layers B Q K+1"]
    mask_logits: Float[Array, "*layers B Q H/4 W/4"]


@flax.struct.dataclass
class FactoredPredictions:
    """All predictions for training, by `all_predictions="factored"`: masks as the two factors of their matmul.

    The loss needs the masks of only one prediction at a time, and the gradient of only the matched ones.

    Attributes:
      class_logits: of the K classes and, last, "no object"; float32.
      mask_embeddings: in the dtype of the network.
      mask_features: float32, the same for all predictions.
    """

    class_logits: Float[Array, "L+1 B Q K+1"]
    mask_embeddings: Float[Array, "L+1 B Q C"]
    mask_features: Float[Array, "B H/4 W/4 C"]

    @property
    def mask_logits(self) -> Float[Array, "predictions B Q h w"]:
        """The masks of all predictions, float32; computed at every call."""
        return mask_product(self.mask_embeddings, self.mask_features)


def mask_product(
    embeddings: Float[Array, "*layers B Q C"], features: Float[Array, "B h w C"]
) -> Float[Array, "*layers B Q h w"]:
    """Mask logits, float32: the products of each query's embedding with every pixel's features."""
    return jnp.einsum("...bqc,bhwc->...bqhw", embeddings, features, precision=mask_precision(embeddings))


def mask_precision(embeddings: Float[Array, "*layers B Q C"]) -> str:
    """The precision of matmuls with mask embeddings or masks: full for a network in float32.

    Embeddings in bfloat16 are rounded by up to 2^-8 of their size, so what they are multiplied by may be rounded by
    2^-11: a GPU then forms the products in its matrix units (TF32), and a TPU in half the time. CPUs compute in float32
    whatever is asked for.
    """
    return "highest" if embeddings.dtype == jnp.float32 else "high"
