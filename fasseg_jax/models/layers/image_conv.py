"""The convolution that a backbone begins with, whose input has three channels."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasseg_jax.models.layers.initializers import Initializer

__all__ = ["ImageConv"]


class ImageConv(nn.Module):
    """A square convolution of images (B, H, W, C) with stride s: (B, H/s, W/s, features).

    `padding` zeros at each side. The parameters are those of `nn.Conv`.
    """

    features: int
    kernel_size: int
    stride: int
    padding: int = 0
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B h_out w_out {self.features}"]:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        directly, by_blocks = (
            partial(f, stride=self.stride, padding=self.padding) for f in (convolve, convolve_blocks)
        )
        if images.shape[1] % self.stride or images.shape[2] % self.stride:
            y = directly(images, kernel)
        else:
            y = jax.lax.platform_dependent(images, kernel, tpu=by_blocks, default=directly)
        return y if bias is None else y + bias


def convolve(
    images: Float[Array, "B H W C"], kernel: Float[Array, "n n C F"], stride: int, padding: int
) -> Float[Array, "B h_out w_out F"]:
    """XLA's convolution."""
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def convolve_blocks(
    images: Float[Array, "B H W C"], kernel: Float[Array, "n n C F"], stride: int, padding: int
) -> Float[Array, "B H/{stride} W/{stride} F"]:
    """The same with blocks of `stride` x `stride` pixels as channels: a convolution without strides, for TPUs.

    A TPU lays channels along 128 lanes. Three fill so few that XLA's copy of the image into this layout takes six times
    as long as this whole function. Matmuls with matrices of 0 and 1 form the blocks, exactly: other ways to move pixels
    between lanes are slow. Height and width must be multiples of the stride.
    """
    b, height, width, channels = images.shape
    rows, columns = (block_members(length, stride) for length in (height, width))
    blocks = jnp.einsum(
        "bhwc,rih,qjw->bijrqc",
        images,
        jnp.asarray(rows, images.dtype),
        jnp.asarray(columns, images.dtype),
        precision="highest",
    ).reshape(b, height // stride, width // stride, stride * stride * channels)

    # The kernel covers whole blocks, `before` of them above and left of the output's own.
    size, features = kernel.shape[0], kernel.shape[-1]
    before = -(-padding // stride)
    first = before * stride - padding  # zeros before the kernel's first row
    count = -(-(first + size) // stride)
    zeros = (first, count * stride - first - size)
    kernel = jnp.pad(kernel, (zeros, zeros, (0, 0), (0, 0))).reshape(count, stride, count, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(count, count, -1, features)
    return jax.lax.conv_general_dilated(
        blocks, kernel, (1, 1), [(before, count - 1 - before)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def block_members(length: int, stride: int) -> Float[np.ndarray, "{stride} blocks {length}"]:
    """1 where a pixel of an axis is the r-th of the i-th block, else 0."""
    pixel = np.arange(length)
    place, block = np.arange(stride)[:, None, None], np.arange(length // stride)[:, None]
    return (pixel == block * stride + place).astype(np.float32)
