"""Normalization layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasseg_jax.ops.layer_norm import EPSILON, layer_norm

__all__ = ["BatchNorm", "FrozenBatchNorm", "LayerNorm", "batch_norm", "group_norm"]


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32; the result has `dtype`."""

    dtype: DTypeLike = jnp.float32
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x.astype(jnp.float32), scale, bias, self.epsilon).astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch norm with constant scale, bias, mean and variance.

    All four live in the collection `batch_stats`, which no optimizer sees.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], use_running_average: bool = True) -> Float[Array, "B h w C"]:
        del use_running_average  # always
        scale, bias = self._constant("scale", jnp.ones, x), self._constant("bias", jnp.zeros, x)
        mean, var = self._constant("mean", jnp.zeros, x), self._constant("var", jnp.ones, x)
        scale = scale * jax.lax.rsqrt(var + EPSILON)
        bias = bias - mean * scale
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)

    def _constant(self, name, init, x):
        return self.variable("batch_stats", name, init, (x.shape[-1],), jnp.float32).value


class BatchNorm(nn.BatchNorm):
    """Trained batch norm. Unlike Flax's, and like PyTorch's, the running variance is the unbiased one."""

    def __call__(
        self, x: Float[Array, "B h w C"], use_running_average: bool | None = None, **options: Any
    ) -> Float[Array, "B h w C"]:
        before: jax.Array | None = self.get_variable("batch_stats", "var")
        y = super().__call__(x, use_running_average, **options)
        if before is not None and not use_running_average:
            kept = self.momentum * before
            n = x.size // x.shape[-1]  # values of a channel
            after: jax.Array = self.get_variable("batch_stats", "var")
            self.put_variable("batch_stats", "var", kept + (after - kept) * (n / max(n - 1, 1)))
        return y


def batch_norm(kind: str, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The batch norm `kind`, called as `norm(x, use_running_average=not train)`.

    "frozen_batch_norm" is constant. "batch_norm" is trained: its statistics are those of the global batch, also when
    that is sharded over devices (jit's reductions are global). The running statistics keep 0.9 of their value a step.
    """
    if kind == "frozen_batch_norm":
        return FrozenBatchNorm(dtype, name=name)
    return BatchNorm(momentum=0.9, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)


def group_norm(dtype: DTypeLike, name: str) -> nn.GroupNorm:
    """Group norm with 32 groups."""
    return nn.GroupNorm(32, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
