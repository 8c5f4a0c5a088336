"""ReLU, GELU, and GELU fused with the matmul that follows it.

They compute the same as in `reference.py`. The difference: the derivatives of `relu` and `gelu_matmul`, written by
hand, save a single array for the backward pass; those that JAX derives save up to four.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fasseg_jax.ops.matmul import matmul

__all__ = ["gelu", "gelu_matmul", "relu"]


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0). The backward pass needs only the result, which the next layer saves anyway."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, grad_y):
    return (jnp.where(y > 0, grad_y, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x Phi(x), where Phi is the normal distribution; computed in float32."""
    y = x.astype(jnp.float32)
    return (y * _normal_distribution(y)).astype(x.dtype)


def _normal_distribution(x: Float[Array, "..."]) -> Float[Array, "..."]:
    # By erf, as PyTorch has it. `jax.nn.gelu` takes erfc, which has two branches: 2.5 times as long on a CPU.
    return 0.5 + 0.5 * jax.lax.erf(x * np.float32(0.5**0.5))


@jax.custom_vjp
def gelu_matmul(x: Float[Array, "*batch C"], kernel: Float[Array, "C out"]) -> Float[Array, "*batch out"]:
    """gelu(x) @ kernel; saves only its inputs for the backward pass."""
    return matmul(gelu(x), kernel)


def _gelu_matmul_forward(x, kernel):
    return gelu_matmul(x, kernel), (x, kernel)


def _gelu_matmul_backward(residuals, grad_out):
    x, kernel = residuals
    flat, grad_out = (a.reshape(-1, a.shape[-1]) for a in (x, grad_out))  # `matmul` says why
    y = flat.astype(jnp.float32)
    # In another form than the forward pass: XLA would keep that one's result instead of computing it again.
    phi = 1 - _normal_distribution(-y)
    einsum = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)
    grad_kernel = einsum("ni,no->io", (y * phi).astype(x.dtype), grad_out)
    grad_x = einsum("no,io->ni", grad_out, kernel) * (phi + y * jax.scipy.stats.norm.pdf(y))
    return grad_x.reshape(x.shape).astype(x.dtype), grad_kernel.astype(kernel.dtype)


gelu_matmul.defvjp(_gelu_matmul_forward, _gelu_matmul_backward)
