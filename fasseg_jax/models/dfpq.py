"""Dynamic focus-aware positional queries (paper section 3.2): the positions a query has just attended to, averaged."""

import jax
import jax.numpy as jnp

__all__ = ["first_focus", "focus_positions"]


def first_focus(mask_probabilities: jax.Array, kind: str) -> jax.Array:
    """What stands in for an attention before the first layer: a normalised indicator of the predicted mask.

    Args:
      mask_probabilities: (B, Q, N) at stride 32.
      kind: "foreground", where the probability is at least 0.5 (the paper), or "background", where it is below (what
        the released weights were trained with).

    Returns:
      (B, Q, N) float32, each query's sum at most 1. It carries no gradient.
    """
    foreground = mask_probabilities >= 0.5
    chosen = (foreground if kind == "foreground" else ~foreground).astype(jnp.float32)
    return jax.lax.stop_gradient(chosen / (chosen.sum(axis=-1, keepdims=True) + 1e-6))


def focus_positions(attention: jax.Array, positions: jax.Array) -> jax.Array:
    """A . P_s, the average of the key positions weighted by the attention: (B, Q, N), (B, N, C) -> (B, Q, C)."""
    return jnp.einsum("bqn,bnc->bqc", attention.astype(positions.dtype), positions)
