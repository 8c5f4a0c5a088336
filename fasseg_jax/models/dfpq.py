"""Dynamic focus-aware positional queries (paper section 3.2): the mean of the positions just attended to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["first_focus", "focus_positions"]


def first_focus(mask_probabilities: Float[Array, "B Q N"], kind: str) -> Float[Array, "B Q N"]:
    """What stands in for an attention before the first layer: a normalized indicator of the predicted mask.

    Args:
      mask_probabilities: at stride 32.
      kind: "foreground", where the probability is at least 0.5 (the paper), or "background", where it is below (the
        released weights were trained with this).

    Returns:
      Weights in float32; those of a query sum to at most 1. They carry no gradient.
    """
    foreground = mask_probabilities >= 0.5
    chosen = (foreground if kind == "foreground" else ~foreground).astype(jnp.float32)
    return jax.lax.stop_gradient(chosen / (chosen.sum(axis=-1, keepdims=True) + 1e-6))


def focus_positions(attention: Float[Array, "B Q N"], positions: Float[Array, "B N C"]) -> Float[Array, "B Q C"]:
    """A . P_s, the mean of the key positions weighted by the attention."""
    return jnp.einsum("bqn,bnc->bqc", attention.astype(positions.dtype), positions)
