"""Normalisation layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fasseg_jax.models.layers.initializers import Dtype
from fasseg_jax.ops.layer_norm import EPSILON, normalise_channels

__all__ = ["FrozenBatchNorm", "LayerNorm", "batch_norm"]


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32; the result is of `dtype`."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalise_channels(x.astype(jnp.float32), scale, bias).astype(self.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch norm of (B, h, w, C) with constant scale, bias, mean and variance.

    All four live in the collection `batch_stats`, outside of what an optimiser sees.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, use_running_average: bool = True) -> jax.Array:
        del use_running_average  # always
        constant = lambda name, init: self.variable("batch_stats", name, init, (x.shape[-1],), jnp.float32).value
        scale, bias = constant("scale", jnp.ones), constant("bias", jnp.zeros)
        mean, var = constant("mean", jnp.zeros), constant("var", jnp.ones)
        scale = scale * jax.lax.rsqrt(var + EPSILON)
        bias = bias - mean * scale
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)


def batch_norm(kind: str, dtype: Dtype, name: str) -> nn.Module:
    """Batch norm by `kind`, called as `norm(x, use_running_average=not train)`.

    "frozen_batch_norm" is constant. "batch_norm" is trained: its statistics are those of the global batch, also where
    that is sharded over devices (jit's reductions are global), and the running ones keep 0.9 of their value a step.
    """
    if kind == "frozen_batch_norm":
        return FrozenBatchNorm(dtype, name=name)
    return nn.BatchNorm(momentum=0.9, epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
