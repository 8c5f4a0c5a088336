"""Multi-head attention with PyTorch's packed input projection."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fasseg_jax.models.layers.linear import Dense
from fasseg_jax.ops.attention import attend
from fasseg_jax.ops.matmul import matmul

__all__ = ["MultiheadAttention"]


class MultiheadAttention(nn.Module):
    """Attention of queries to keys and values.

    `allowed` is True where a query may look; None allows everything. Returns the output, and the probabilities averaged
    over the heads in float32. As in PyTorch, the projections are one matrix in the order query, key, value, and are
    initialized as one.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "B Q C"],
        keys: Float[Array, "B N C"],
        values: Float[Array, "B N C"],
        allowed: Bool[Array, "B Q N"] | None = None,
    ) -> tuple[Float[Array, "B Q C"], Float[Array, "B Q N"]]:
        c, heads = queries.shape[-1], self.num_heads
        kernel = self.param("in_proj_kernel", nn.initializers.xavier_uniform(), (c, 3 * c))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * c,))

        def project(x, i):
            part = slice(i * c, (i + 1) * c)
            x, k, b = nn.dtypes.promote_dtype(x, kernel[:, part], bias[part], dtype=self.dtype)
            return (matmul(x, k) + b).reshape(*x.shape[:2], heads, c // heads)  # (B, N, C) -> (B, N, M, D)

        q, k, v = project(queries, 0), project(keys, 1), project(values, 2)
        q = q * (c // heads) ** -0.5
        logits = jnp.einsum("bqmd,bnmd->bmqn", q, k, preferred_element_type=jnp.float32)
        if allowed is not None:
            logits = jnp.where(allowed[:, None], logits, -jnp.inf)
        out, probabilities = attend(logits, v.swapaxes(1, 2))  # (B, N, M, D) -> (B, M, N, D)
        out = out.swapaxes(1, 2).reshape(queries.shape)  # (B, M, Q, D) -> (B, Q, M, D) -> (B, Q, C)
        out = Dense(c, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="out_proj")(out)
        return out, probabilities
