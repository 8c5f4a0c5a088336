"""The product of activations with a kernel, as every dense layer and 1x1 convolution computes it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["matmul"]


def matmul(x: Float[Array, "*batch C"], kernel: Float[Array, "C out"]) -> Float[Array, "*batch out"]:
    """The product x @ kernel of arrays of one dtype.

    All axes of x but the last are one for XLA. With several of them, XLA for CPUs puts the axes of a gradient in
    another order to compute that of the kernel, and its loop misses the cache at each number.
    """
    flat = x.reshape(-1, x.shape[-1])
    # JAX's own derivative serves float32. In bfloat16 it would multiply the float32 results' gradients.
    product = flat @ kernel if x.dtype == jnp.float32 else _rounded_matmul(flat, kernel)
    return product.reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _rounded_matmul(a: Float[Array, "N C"], b: Float[Array, "C out"]) -> Float[Array, "N out"]:
    return _rounded_product(a, b, 1, 0)


def _rounded_product(a, b, axis_a, axis_b):
    """Sums in float32, rounded to the dtype of the factors.

    All devices compute this when they are asked for a product in bfloat16. XLA for CPUs then turns both factors into
    float32 and multiplies those, unless it is asked for the sums: only so it uses instructions for bfloat16.
    """
    dimensions = (((axis_a,), (axis_b,)), ((), ()))

    def rounded_sums(a, b):
        return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32).astype(a.dtype)

    def directly(a, b):
        return jax.lax.dot_general(a, b, dimensions)

    return jax.lax.platform_dependent(a, b, cpu=rounded_sums, default=directly)


def _forward(a, b):
    return _rounded_matmul(a, b), (a, b)


def _backward(residuals, grad):
    a, b = residuals
    return _rounded_product(grad, b, 1, 1), _rounded_product(a, grad, 0, 0)


_rounded_matmul.defvjp(_forward, _backward)
