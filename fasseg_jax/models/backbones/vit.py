"""Plain Vision Transformers as DINOv2 and DINOv3 trained them, with a simple feature pyramid.

DINOv2: Oquab et al., 2023; register tokens: Darcet et al., 2023; DINOv3: Siméoni et al., 2025; the pyramid: ViTDet (Li
et al., 2022). docs/specification.md, section 2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasseg_jax.models.backbones.backbone import Backbone
from fasseg_jax.models.layers.image_conv import ImageConv
from fasseg_jax.models.layers.linear import Dense, GeluDense
from fasseg_jax.models.layers.norms import LayerNorm
from fasseg_jax.ops.activations import gelu
from fasseg_jax.ops.attention import attend
from fasseg_jax.ops.bilinear import interpolate, taps
from fasseg_jax.ops.matmul import matmul

__all__ = ["ROPE_BASE", "TABLE", "ViT", "bicubic"]

truncated_normal = nn.initializers.truncated_normal(0.02)

EPSILON = {2: 1e-6, 3: 1e-5}  # of the norms, by version
STRIDE = 16  # of the pyramid's map that is not resized
TABLE = 37  # rows and columns of DINOv2's position table: images of 518 pixels in patches of 14
OFFSET = 0.1  # the official program resizes the table as if the image had this much of a patch more
ROPE_BASE = 100.0

Rotary = tuple[Float[Array | np.ndarray, "N D"], Float[Array | np.ndarray, "N D"]]


def bicubic(
    table: Float[Array, "rows columns C"], height: int, width: int, offset: float
) -> Float[Array, "{height} {width} C"]:
    """Resize a position table as the official DINOv2 does, by the scale factors (size + offset) / table's size.

    The same as PyTorch's bicubic `interpolate` without antialiasing.
    """

    def weights(source: int, target: int) -> Float[np.ndarray, "target source"]:
        position = (np.arange(target) + 0.5) * (source / (target + offset)) - 0.5
        low = np.floor(position).astype(int)
        found = np.zeros((target, source))
        for shift in (-1, 0, 1, 2):
            distance = np.abs(position - (low + shift))
            near = 1.25 * distance**3 - 2.25 * distance**2 + 1  # Keys' kernel with a = -0.75
            far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
            index = np.clip(low + shift, 0, source - 1)
            np.add.at(found, (np.arange(target), index), np.where(distance <= 1, near, far))
        return found.astype(np.float32)

    rows, columns = weights(table.shape[0], height), weights(table.shape[1], width)
    return jnp.einsum("hi,wj,ijc->hwc", rows, columns, table, precision="highest")


def rotary_tables(height: int, width: int, prefix: int, channels: int) -> Rotary:
    """Cosines and sines that rotate the queries and keys of `prefix` tokens, not at all, and of all patches.

    The angle of a patch is 2 pi times its center, y or x in [-1, 1], times a frequency. A quarter of the channels of a
    head have y's angles and a quarter x's; the other half repeats them.
    """
    frequency = ROPE_BASE ** -(np.arange(channels // 4) / (channels // 4))  # (D/4,)
    y, x = (2 * (np.arange(size) + 0.5) / size - 1 for size in (height, width))
    shape = height, width, channels // 4
    angles = [np.broadcast_to(axis[..., None] * frequency, shape) for axis in (y[:, None], x[None])]
    angle = 2 * np.pi * np.concatenate(angles, axis=-1).reshape(height * width, channels // 2)  # (N, D/2)
    angle = np.concatenate([np.zeros((prefix, channels // 2)), angle])
    angle = np.concatenate([angle, angle], axis=-1)  # (prefix + N, D)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


class SelfAttention(nn.Module):
    """Self attention. `bias` adds a bias to queries and values, and to keys unless they are rotated."""

    num_heads: int
    bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], rotary: Rotary | None) -> Float[Array, "B N C"]:
        b, n, c = x.shape
        heads = self.num_heads
        queries, keys, values = (y.reshape(b, n, heads, c // heads) for y in self._project(x, rotary is None))
        if rotary is not None:
            queries, keys = self._rotate(queries, rotary), self._rotate(keys, rotary)
        queries = queries * (c // heads) ** -0.5
        logits = jnp.einsum("bqmd,bnmd->bmqn", queries, keys, preferred_element_type=jnp.float32)
        out, _ = attend(logits, values.swapaxes(1, 2))  # (B, N, M, D) -> (B, M, N, D)
        out = out.swapaxes(1, 2).reshape(b, n, c)  # (B, M, N, D) -> (B, N, M, D) -> (B, N, C)
        return Dense(c, dtype=self.dtype, kernel_init=truncated_normal, name="proj")(out)

    def _project(self, x, key_bias):
        """Queries, keys and values: one matmul each, because the gradient of a packed one keeps its whole output."""
        c = x.shape[-1]
        kernels = jnp.split(self.param("qkv_kernel", truncated_normal, (c, 3 * c)).astype(self.dtype), 3, axis=1)
        outputs = [matmul(x, kernel) for kernel in kernels]
        if self.bias:
            biased = (0, 1, 2) if key_bias else (0, 2)
            bias = self.param("qkv_bias", nn.initializers.zeros, (len(biased) * c,)).astype(self.dtype)
            for i, part in zip(biased, jnp.split(bias, len(biased)), strict=True):
                outputs[i] += part
        return outputs

    def _rotate(self, x, rotary):
        cosine, sine = (table[:, None] for table in rotary)  # (N, 1, D)
        x = x.astype(jnp.float32)
        first, second = jnp.split(x, 2, axis=-1)
        return (x * cosine + jnp.concatenate([-second, first], axis=-1) * sine).astype(self.dtype)


class LayerScale(nn.Module):
    """A factor for each channel."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> Float[Array, "B N C"]:
        return x * self.param("gamma", nn.initializers.constant(1e-5), (x.shape[-1],)).astype(self.dtype)


class ViTBlock(nn.Module):
    """Self attention and an MLP, pre-norm, with layer scale. `gated` is SwiGLU in place of GELU."""

    num_heads: int
    mlp_width: int
    gated: bool
    attention_bias: bool
    epsilon: float
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], rotary: Rotary | None, train: bool) -> Float[Array, "B N C"]:
        # Drop path: the whole residual branch is dropped for an image.
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)
        y = LayerNorm(self.dtype, self.epsilon, name="norm1")(x)
        y = SelfAttention(self.num_heads, self.attention_bias, self.dtype, name="attention")(y, rotary)
        x = x + drop_path(LayerScale(self.dtype, name="scale1")(y))
        y = self._mlp(LayerNorm(self.dtype, self.epsilon, name="norm2")(x))
        return x + drop_path(LayerScale(self.dtype, name="scale2")(y))

    def _mlp(self, y):
        def dense(width, name):
            return Dense(width, dtype=self.dtype, kernel_init=truncated_normal, name=name)

        c = y.shape[-1]
        if not self.gated:
            return GeluDense(c, self.dtype, truncated_normal, name="fc2")(dense(self.mlp_width, "fc1")(y))
        gate, value = jnp.split(dense(2 * self.mlp_width, "gate_and_value")(y), 2, axis=-1)
        return dense(c, "gated_out")(jax.nn.silu(gate) * value)


class Doubling(nn.Module):
    """A transposed 2x2 convolution with stride 2: (B, h, w, C) -> (B, 2h, 2w, features)."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 2*h 2*w {self.features}"]:
        b, h, w, c = x.shape
        kernel = self.param("kernel", truncated_normal, (2, 2, c, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.einsum("bhwc,yxcf->bhywxf", x, kernel)
        return y.reshape(b, 2 * h, 2 * w, self.features) + bias


class Pyramid(nn.Module):
    """ViTDet's simple feature pyramid: one map -> four, with 4, 2, 1 and 1/2 times its rows and columns.

    The pixel decoder begins with a projection and a norm of each map, so ViTDet's own are left out.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> list[Float[Array, "B _ _ _"]]:
        c = x.shape[-1]
        y = Doubling(c // 2, self.dtype, name="four_0")(x)
        y = gelu(LayerNorm(self.dtype, 1e-6, name="four_norm")(y))
        four, two = Doubling(c // 4, self.dtype, name="four_1")(y), Doubling(c // 2, self.dtype, name="two")(x)
        return [four, two, x, nn.max_pool(x, (2, 2), (2, 2), padding="SAME")]


class ViT(Backbone):
    """Normalized images -> [res2, res3, res4, res5] at strides 4, 8, 16, 32 with C/4, C/2, C and C channels.

    Patches need not divide the images: zeros are added at the bottom and the right up to whole patches, and maps of
    other strides, such as 3.5 to 28 for patches of 14, are resampled at the pixels' own places. The image itself is
    never resized.

    `version` 2 is DINOv2, which adds a table of positions to the patches; `version` 3 is DINOv3, which rotates queries
    and keys (RoPE) and has no bias of keys. `drop_path` is the rate of the last block; the rates rise linearly from 0.
    In training it draws from the random stream "dropout".
    """

    version: int
    width: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_width: int
    gated: bool
    attention_bias: bool
    num_registers: int
    drop_path: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> list[Float[Array, "B _ _ _"]]:
        patches = self._patches(images)  # (B, h, w, C)
        b, h, w, c = patches.shape
        prefix = 1 + self.num_registers
        rotary = rotary_tables(h, w, prefix, c // self.num_heads) if self.version == 3 else None
        x = self._tokens(patches)
        block_type = nn.remat(ViTBlock, static_argnums=(3,)) if self.remat else ViTBlock
        for i, drop_path in enumerate(np.linspace(0, self.drop_path, self.depth).tolist()):
            fields = self.num_heads, self.mlp_width, self.gated, self.attention_bias
            block = block_type(*fields, EPSILON[self.version], drop_path, self.dtype, name=f"block{i}")
            x = block(x, rotary, train)
        x = LayerNorm(self.dtype, EPSILON[self.version], name="norm")(x)
        maps = Pyramid(self.dtype, name="pyramid")(x[:, prefix:].reshape(b, h, w, c))
        sizes = [(images.shape[1] // stride, images.shape[2] // stride) for stride in (4, 8, 16, 32)]
        return [self._resample(x, size) for x, size in zip(maps, sizes, strict=True)]

    def layers(self) -> list[list[str]]:
        """As BEiT and MAE number them: the embedding, then each block."""
        embedding = ["patches", "class_token", "registers", "position_table"]
        return [embedding, *([f"block{i}"] for i in range(self.depth))]

    def _patches(self, images):
        bottom, right = (-length % self.patch_size for length in images.shape[1:3])
        images = jnp.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0)))
        size = self.patch_size
        conv = ImageConv(self.width, size, size, dtype=self.dtype, kernel_init=truncated_normal, name="patches")
        return conv(images)

    def _tokens(self, patches):
        """The class token, the registers and the patches, with positions: (B, h, w, C) -> (B, 1 + R + h * w, C)."""
        b, h, w, c = patches.shape
        class_token = self.param("class_token", truncated_normal, (c,))
        if self.version == 2:
            table = self.param("position_table", truncated_normal, (1 + TABLE**2, c))
            class_token += table[0]
            patches += self._positions(table[1:].reshape(TABLE, TABLE, c), h, w).astype(self.dtype)
        prefix = class_token[None]
        if self.num_registers:
            prefix = jnp.concatenate([prefix, self.param("registers", truncated_normal, (self.num_registers, c))])
        prefix = jnp.broadcast_to(prefix.astype(self.dtype), (b, *prefix.shape))
        return jnp.concatenate([prefix, patches.reshape(b, h * w, c)], axis=1)

    def _positions(self, table, h, w):
        if (h, w) == (TABLE, TABLE):
            return table
        if self.num_registers:  # the official networks with registers resize otherwise than those without
            return jax.image.resize(table, (h, w, table.shape[-1]), "cubic", antialias=True)
        return bicubic(table, h, w, OFFSET)

    def _resample(self, x, size):
        """A map whose pixels have `patch_size` / 16 of the side that they should have, resampled to `size`."""
        if self.patch_size == STRIDE:
            return x
        for axis, length in ((1, size[0]), (2, size[1])):
            whole = -(-length // self.patch_size)  # an image this long that both kinds of pixels divide
            low, high, weight = (values[:length] for values in taps(STRIDE * whole, self.patch_size * whole))
            x = interpolate(x, low, high, weight, axis)  # clips what lies beyond the last pixel
        return x
