"""Initializers of PyTorch and Detectron2."""

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["Initializer", "he_normal_fan_out", "he_uniform_a1", "symmetric_uniform", "torch_uniform"]

Initializer = jax.nn.initializers.Initializer

he_uniform_a1 = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Detectron2's c2_xavier_fill
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # Detectron2's c2_msra_fill
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default, U(+-1/sqrt(fan_in))


def symmetric_uniform(limit: float) -> Initializer:
    """An initializer that draws from U(-limit, limit)."""

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init
