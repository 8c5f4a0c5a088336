"""3x3 convolutions with stride 1, on CPUs with fewer products.

Computes what `jax.lax.conv_general_dilated` computes. The difference: a tile of 2 x 2 outputs takes 16 products for
each pair of channels in place of 36, as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR
2016. With B, G and A of that paper, Y = A^T [(G k G^T) * (B^T d B)] A for a tile d of 4 x 4 inputs and a kernel k,
where * multiplies elementwise. The numbers in B, G and A are 0, 1/2 and 1 (or negative), so results are as exact as the
plain sum. Larger tiles save more, but their rounding error is five times as large.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["convolve"]

# Numbers in the smaller of both maps from which tiles are worth what they cost to form, and half a second of compiling.
SMALLEST_MAP = 2**21
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
Terms = list[list[jax.Array]]  # 4 x 4 arrays (tiles, channels)


def convolve(
    x: Float[Array, "B h w in"],
    kernel: Float[Array, "kh kw kernel_in out"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **others: Any,
) -> Float[Array, "B h_out w_out out"]:
    """`jax.lax.conv_general_dilated` of (B, h, w, C) without dilation or groups, for `nn.Conv`. `others` go to it."""
    b, h, w, channels = x.shape
    by_three = kernel.shape[:2] == (3, 3) and all(s == 1 for s in strides) and all(p == (1, 1) for p in padding)
    if by_three and b * h * w * min(channels, kernel.shape[3]) >= SMALLEST_MAP:
        return conv3x3(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **others)


@jax.custom_vjp
def conv3x3(x: Float[Array, "B h w in"], kernel: Float[Array, "3 3 in out"]) -> Float[Array, "B h w out"]:
    """The convolution with stride 1, padded by one zero. Its derivative saves only `x` and `kernel`."""
    return jax.lax.platform_dependent(x, kernel, cpu=by_tiles, default=directly)


def directly(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def by_tiles(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same from 16 products of tiles, in float32."""
    products = _products(partial(jnp.einsum, "tc,co->to"), _input_terms(x), _kernel_terms(kernel))
    return _outputs(products, x.shape).astype(x.dtype)


def _gradients_directly(x, kernel, grad):
    return jax.vjp(directly, x, kernel)[1](grad)


def _gradients_by_tiles(x, kernel, grad):
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    of_products = _outputs_transposed(grad)
    grad_terms = _products(partial(jnp.einsum, "tc,to->co"), _input_terms(x), of_products)
    grad_terms = jnp.stack([jnp.stack(row) for row in grad_terms])
    (grad_kernel,) = jax.linear_transpose(_kernel_terms, kernel)(grad_terms)
    return by_tiles(grad, turned), grad_kernel


def _forward(x, kernel):
    return conv3x3(x, kernel), (x, kernel)


def _backward(residuals, grad):
    return jax.lax.platform_dependent(*residuals, grad, cpu=_gradients_by_tiles, default=_gradients_directly)


conv3x3.defvjp(_forward, _backward)


def _products(product, a, b):
    return [[product(a[i][j], b[i][j]) for j in range(4)] for i in range(4)]


def _input_terms(x: jax.Array) -> Terms:
    """B^T d B of all tiles. Neighbors overlap: a tile's last two rows and columns are the next one's first two."""
    b, h, w, channels = x.shape
    rows, columns = -(-h // 2), -(-w // 2)
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 2 * rows + 1 - h), (1, 2 * columns + 1 - w), (0, 0)))
    pairs = x.reshape(b, rows + 1, 2, columns + 1, 2, channels)

    def along(axis, even, odd):
        count = even.shape[axis] - 1
        first, second = (jax.lax.slice_in_dim(a, 0, count, axis=axis) for a in (even, odd))
        third, fourth = (jax.lax.slice_in_dim(a, 1, count + 1, axis=axis) for a in (even, odd))
        return first - third, second + third, third - second, second - fourth

    even, odd = (along(1, pairs[:, :, 0, :, i], pairs[:, :, 1, :, i]) for i in range(2))
    return [[term.reshape(-1, channels) for term in along(2, *row)] for row in zip(even, odd, strict=True)]


def _kernel_terms(kernel: jax.Array) -> jax.Array:
    """G k G^T, (4, 4, in, out)."""
    return jnp.einsum("pi,qj,ijco->pqco", G, G, kernel.astype(jnp.float32), precision="highest")


def _outputs(products: Terms, shape: tuple[int, ...]) -> jax.Array:
    """A^T m A of all tiles, as a map (B, h, w, out)."""
    b, h, w, _ = shape
    rows, columns = -(-h // 2), -(-w // 2)

    def along(m):
        return m[0] + m[1] + m[2], m[1] - m[2] - m[3]

    by_columns = [along(row) for row in products]
    pixels = [along([row[i] for row in by_columns]) for i in range(2)]  # of a tile, by column and row
    maps = [[pixel.reshape(b, rows, columns, -1) for pixel in column] for column in pixels]
    tiles = jnp.stack([jnp.stack(column, axis=2) for column in maps], axis=4)  # (B, rows, 2, columns, 2, out)
    return tiles.reshape(b, 2 * rows, 2 * columns, -1)[:, :h, :w]


def _outputs_transposed(grad: jax.Array) -> Terms:
    """A g A^T of all tiles: the gradient of `_outputs`."""
    b, h, w, channels = grad.shape
    rows, columns = -(-h // 2), -(-w // 2)
    grad = jnp.pad(grad.astype(jnp.float32), ((0, 0), (0, 2 * rows - h), (0, 2 * columns - w), (0, 0)))
    pairs = grad.reshape(b, rows, 2, columns, 2, channels)

    def along(first, second):
        return first, first + second, first - second, -second

    left, right = (along(pairs[:, :, 0, :, i], pairs[:, :, 1, :, i]) for i in range(2))
    return [[term.reshape(-1, channels) for term in along(*row)] for row in zip(left, right, strict=True)]
