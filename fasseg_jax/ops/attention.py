"""The core of attention: softmax(logits) @ values.

Computes the same as `reference.attend`. The difference: its derivative, written by hand, saves the exponentials in the
values' dtype, and their sums; the one that JAX derives saves the probabilities beside them.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["attend"]


@jax.custom_vjp
def attend(
    logits: Float[Array, "*batch M Q N"], values: Float[Array, "*batch M N D"]
) -> tuple[Float[Array, "*batch M Q D"], Float[Array, "*batch Q N"]]:
    """softmax(logits) @ values, and the probabilities averaged over the heads.

    Args:
      logits: float32; -inf forbids a key. Each row has at least one that is finite.
      values: of any floating dtype.

    Returns:
      The output in the dtype of `values`, and the averaged probabilities in float32.
    """
    return _attend_forward(logits, values)[0]


def _attend_forward(logits, values):
    # Cast before summing. The barrier stops XLA from keeping the float32 copy too, so the logits are the only float32
    # array of this size.
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = jax.lax.optimization_barrier(weights.astype(values.dtype))
    total = weights.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    out = jnp.einsum("...qn,...nd->...qd", weights, values, preferred_element_type=jnp.float32)
    return ((out / total).astype(values.dtype), _mean_of_heads(weights / total)), (weights, total, values)


def _mean_of_heads(probabilities: Float[Array, "*batch M Q N"]) -> Float[Array, "*batch Q N"]:
    # As additions, which XLA fuses with what comes before. A reduction over this axis took a CPU ten times as long.
    heads = [probabilities[..., head, :, :] for head in range(probabilities.shape[-3])]
    return functools.reduce(jnp.add, heads) / len(heads)


def _attend_backward(residuals, cotangents):
    weights, total, values = residuals
    grad_out, grad_mean = cotangents
    einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
    grad_values = einsum("...qn,...qd->...nd", weights, (grad_out / total).astype(values.dtype))
    grad_probabilities = einsum("...qd,...nd->...qn", grad_out, values) + grad_mean[..., None, :, :] / weights.shape[-3]
    probabilities = weights / total
    inner = (probabilities * grad_probabilities).sum(axis=-1, keepdims=True)
    return probabilities * (grad_probabilities - inner), grad_values.astype(values.dtype)


attend.defvjp(_attend_forward, _attend_backward)
