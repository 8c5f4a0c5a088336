"""ReLU, and GELU with the product that follows it, with derivatives that keep one array each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["gelu_product", "relu"]


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
