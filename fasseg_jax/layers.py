"""Layers shared by backbone, pixel decoder and decoder: convolutions, norms, activations, initialisers.

Derivatives of norms and activations are written by hand so that training keeps one array for each, no more: those that
JAX derives keep up to four.

Axis letters of the whole package: B images; H, W padded input size; h, w a feature map's size; C hidden width; Q
queries; K classes; M attention heads; D = C / M; L decoder layers; N tokens of a map, N = h * w, row-major.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "DepthwiseConv",
    "FrozenBatchNorm",
    "GeluDense",
    "LayerNorm",
    "PointwiseConv",
    "batch_norm",
    "gelu_product",
    "relu",
    "torch_linear",
]

Dtype = Any
Initializer = jax.nn.initializers.Initializer

EPSILON = 1e-5  # of every norm in the network

he_uniform_a1 = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # Detectron2's c2_xavier_fill
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # Detectron2's c2_msra_fill
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default, U(+-1/sqrt(fan_in))


def symmetric_uniform(limit: float) -> Initializer:
    """Initialiser drawing from U(-limit, limit)."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def torch_linear(
    fan_in: int, features: int, dtype: Dtype, kernel_init: Initializer = torch_uniform, name: str | None = None
) -> nn.Dense:
    """Dense layer with the biases that PyTorch's Linear starts from, U(+-1/sqrt(fan_in))."""
    bias_init = symmetric_uniform(fan_in**-0.5)
    return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, bias_init=bias_init, name=name)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0). Its derivative needs the result alone, which the next layer keeps anyway, and not `x`."""
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))


@jax.custom_vjp
def gelu_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """gelu(x) @ kernel with the exact GELU, x Phi(x) with Phi the normal distribution. Of it only `x` is kept."""
    return jax.nn.gelu(x, approximate=False) @ kernel


def _gelu_product_backward(kept, gradient):
    x, kernel = kept
    y = x.astype(jnp.float32)
    phi = 0.5 + 0.5 * jax.lax.erf(y * np.float32(0.5**0.5))
    product = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
    # In this order XLA for CPUs turns the gradient on its side, the smaller of the two, not what it computes with erf.
    by_kernel = product("...o,...i->oi", gradient, (y * phi).astype(x.dtype)).T
    by_x = product("...o,io->...i", gradient, kernel) * (phi + y * jax.scipy.stats.norm.pdf(y))
    return by_x.astype(x.dtype), by_kernel.astype(kernel.dtype)


gelu_product.defvjp(lambda x, kernel: (gelu_product(x, kernel), (x, kernel)), _gelu_product_backward)


@jax.custom_vjp
def normalise_channels(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer norm over the last axis of x, float32; kept are `x` and two numbers for each of its rows."""
    return _normalise_forward(x, scale, bias)[0]


def _normalise_forward(x, scale, bias):
    mean = x.mean(axis=-1, keepdims=True)
    # In two passes, as PyTorch computes it.
    rate = jax.lax.rsqrt(jnp.square(x - mean).mean(axis=-1, keepdims=True) + EPSILON)
    return (x - mean) * (rate * scale) + bias, (x, mean, rate, scale)


def _normalise_backward(kept, gradient):
    x, mean, rate, scale = kept
    normed, scaled = (x - mean) * rate, gradient * scale
    along = (scaled * normed).mean(axis=-1, keepdims=True)
    by_x = rate * (scaled - scaled.mean(axis=-1, keepdims=True) - normed * along)
    sum_rows = lambda y: y.reshape(-1, y.shape[-1]).sum(axis=0)  # (..., C) -> (C,)
    return by_x, sum_rows(gradient * normed), sum_rows(gradient)


normalise_channels.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nn.Module):
    """Layer norm over the last axis, computed in float32; the result is of `dtype`."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalise_channels(x.astype(jnp.float32), scale, bias).astype(self.dtype)


class GeluDense(nn.Module):
    """Dense layer of the exact GELU of its input, (..., C) -> (..., features)."""

    features: int
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return gelu_product(x, kernel) + bias


class PointwiseConv(nn.Module):
    """1x1 convolution, (B, h, w, Cin) -> (B, ceil(h/s), ceil(w/s), Cout) with s = `strides`.

    Computed as a matrix product, which XLA runs up to three times faster on a CPU than the same convolution. The kernel
    has a convolution's shape (1, 1, Cin, Cout).
    """

    features: int
    strides: int = 1
    use_bias: bool = True
    dtype: Dtype = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (1, 1, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = x[:, :: self.strides, :: self.strides]
        y = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0])
        return y if bias is None else y + bias


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution with bias, padded by one zero, (B, h, w, C) -> same.

    Computed as nine shifted products, on a CPU thirty times faster than XLA's grouped convolution.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, h, w, c = x.shape
        kernel = self.param("kernel", torch_uniform, (3, 3, 1, c))
        bias = self.param("bias", symmetric_uniform(1 / 3), (c,))  # fan-in 9
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        for i in range(3):
            for j in range(3):
                bias = bias + x[:, i : i + h, j : j + w] * kernel[i, j, 0]  # (B, h, w, C)
        return bias


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
