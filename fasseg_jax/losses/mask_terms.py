"""What a pair's masks are compared by, and what both ways to do so return: `mask_loss.py` and `shared_mask_loss.py`."""

from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Float, Int32

__all__ = ["MaskLosses", "losses_at_points", "with_gradient"]


@flax.struct.dataclass
class MaskLosses:
    """Sums over the matched pairs of this device's images. Only `weighted` carries a gradient.

    Attributes:
      queries: the query matched with each target, -1 for padding.
      non_finite_costs: matching costs that were NaN or infinite.
      cross_entropy: of each prediction.
      dice: of each prediction.
      weighted: cross-entropy and Dice loss with their weights, over all predictions.
    """

    queries: Int32[Array, "L1 B T"]
    non_finite_costs: Int32[Array, ""]
    cross_entropy: Float[Array, "L1"]
    dice: Float[Array, "L1"]
    weighted: Float[Array, ""]


def losses_at_points(
    logits: Float[Array, "*pairs S"], truth: Float[Array, "*#pairs S"], total: int, weights: Array | float = 1.0
) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"]]:
    """Cross-entropy and Dice loss of pairs by the masks of both at points, whose weights add up to `total`."""
    cross_entropy = ((jax.nn.softplus(logits) - logits * truth) * weights).sum(axis=-1) / total
    probability = jax.nn.sigmoid(logits) * weights
    product = (probability * truth).sum(axis=-1)
    dice = 1 - (2 * product + 1) / (probability.sum(axis=-1) + (truth * weights).sum(axis=-1) + 1)
    return cross_entropy, dice


@jax.custom_vjp
def with_gradient(value: Float[Array, ""], factors: Any, gradients: Any) -> Float[Array, ""]:
    """`value`, whose derivatives with respect to `factors`, a tree of arrays, are declared to be `gradients`."""
    del factors, gradients
    return value


def _with_gradient_forward(value, factors, gradients):
    del factors
    return value, gradients


def _with_gradient_backward(gradients, cotangent):
    return None, jax.tree.map(lambda x: cotangent * x, gradients), None


with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)
