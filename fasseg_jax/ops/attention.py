"""softmax(logits) @ values, with a derivative that keeps one array of the logits' size."""

import functools

import jax
import jax.numpy as jnp

__all__ = ["attend"]


@jax.custom_vjp
def attend(logits: jax.Array, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """softmax(logits) @ values, and the probabilities averaged over the heads.

    The derivative is written by hand: it keeps the exponentials and their sums, where XLA would keep the probabilities
    beside them.

    Args:
      logits: (..., M, Q, N) float32, in each row at least one that is not -inf.
      values: (..., M, N, D).

    Returns:
      (..., M, Q, D) in the dtype of `values`, and (..., Q, N) float32.
    """
    return _attend_forward(logits, values)[0]


def _attend_forward(logits, values):
    # Rounded before they are summed, and behind a barrier, as XLA would keep both forms: nothing as large as the logits
    # is moved in float32 but they.
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = jax.lax.optimization_barrier(weights.astype(values.dtype))
    total = weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    out = jnp.einsum("...qn,...nd->...qd", weights, values, preferred_element_type=jnp.float32)
    outputs = (out / total).astype(values.dtype), (weights / total).mean(axis=-3)
    return outputs, (weights, total, values)


def _attend_backward(kept, gradients):
    (weights, total, values), (by_out, by_mean) = kept, gradients
    product = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
    by_values = product("...qn,...qd->...nd", weights, (by_out / total).astype(values.dtype))
    by_probabilities = product("...qd,...nd->...qn", by_out, values) + by_mean[..., None, :, :] / weights.shape[-3]
    probabilities = weights / total
    inner = (probabilities * by_probabilities).sum(axis=-1, keepdims=True)
    return probabilities * (by_probabilities - inner), by_values.astype(values.dtype)


attend.defvjp(_attend_forward, _attend_backward)
