"""Swin Transformer backbones (Liu et al., 2021) for feature maps of any size.

docs/specification.md, section 2.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fasseg_jax.models.backbones.backbone import Backbone
from fasseg_jax.models.layers.image_conv import ImageConv
from fasseg_jax.models.layers.linear import Dense, GeluDense
from fasseg_jax.models.layers.norms import LayerNorm
from fasseg_jax.ops.attention import attend
from fasseg_jax.ops.matmul import matmul

__all__ = ["Swin"]

truncated_normal = nn.initializers.truncated_normal(0.02)


def relative_position_index(window: int) -> Int[np.ndarray, "{window}*{window} {window}*{window}"]:
    """Row of the bias table for each pair of tokens in a window of side w: (drow + w-1) * (2w-1) + (dcol + w-1)."""
    rows, cols = np.divmod(np.arange(window * window), window)
    row_offset = rows[:, None] - rows[None, :] + window - 1
    col_offset = cols[:, None] - cols[None, :] + window - 1
    return row_offset * (2 * window - 1) + col_offset


def partition_windows(x: Float[Array, "B h w C"], window: int) -> Float[Array, "B windows tokens C"]:
    """The window * window tokens of each window, windows row-major."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)  # (B, rows, window, columns, window, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, window * window, c)


def merge_windows(
    x: Float[Array, "B windows tokens C"], window: int, height: int, width: int
) -> Float[Array, "B {height} {width} C"]:
    """The inverse of `partition_windows`."""
    b, c = x.shape[0], x.shape[-1]
    x = x.reshape(b, height // window, width // window, window, window, c)  # (B, rows, columns, window, window, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, height, width, c)


def shifted_window_bias(
    height: int, width: int, window: int, shift: int
) -> Float[np.ndarray, "windows {window}*{window} {window}*{window}"]:
    """-100 between tokens that only the cyclic shift made neighbors, else 0."""

    def regions(size):
        position = np.arange(size)
        return (position >= size - window).astype(int) + (position >= size - shift)

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = region.reshape(height // window, window, width // window, window)
    region = region.transpose(0, 2, 1, 3).reshape(-1, window * window)  # (windows, w*w)
    return np.where(region[:, :, None] == region[:, None, :], 0, -100).astype(np.float32)


class SplitDense(nn.Module):
    """A dense layer whose output is split into `parts` arrays of C channels.

    One matmul each, because the gradient of a single packed matmul keeps the whole output alive.
    """

    parts: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> list[Float[Array, "*batch C"]]:
        c = x.shape[-1]
        kernel = self.param("kernel", truncated_normal, (c, self.parts * c))
        bias = self.param("bias", nn.initializers.zeros, (self.parts * c,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernels, biases = jnp.split(kernel, self.parts, axis=1), jnp.split(bias, self.parts)
        return [matmul(x, kernel) + bias for kernel, bias in zip(kernels, biases, strict=True)]


class WindowAttention(nn.Module):
    """Self attention within windows, with a learned bias for each relative position.

    `shift_bias` is that of `shifted_window_bias`, or None where windows are not shifted.
    """

    num_heads: int
    window: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B windows tokens C"], shift_bias: Float[np.ndarray, "windows tokens tokens"] | None
    ) -> Float[Array, "B windows tokens C"]:
        b, windows, tokens, c = x.shape
        heads = self.num_heads
        table = self.param("relative_position_bias", truncated_normal, ((2 * self.window - 1) ** 2, heads))
        bias = table[relative_position_index(self.window)].transpose(2, 0, 1)  # (w*w, w*w, heads) -> (heads, w*w, w*w)
        q, k, v = (y.reshape(b, windows, tokens, heads, c // heads) for y in SplitDense(3, self.dtype, name="qkv")(x))
        q = q * (c // heads) ** -0.5
        logits = jnp.einsum("bnqhd,bnkhd->bnhqk", q, k, preferred_element_type=jnp.float32) + bias
        if shift_bias is not None:
            logits = logits + shift_bias[:, None]  # (windows, 1, w*w, w*w)
        x, _ = attend(logits, v.swapaxes(2, 3))  # (b, windows, w*w, heads, D) -> (b, windows, heads, w*w, D)
        x = x.swapaxes(2, 3).reshape(b, windows, tokens, c)  # heads and D back into C
        return Dense(c, dtype=self.dtype, kernel_init=truncated_normal, name="proj")(x)


class SwinBlock(nn.Module):
    """Window attention and MLP, pre-norm. `shift` is half a window in every second block, else 0."""

    num_heads: int
    window: int
    shift: int
    mlp_ratio: int
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], train: bool) -> Float[Array, "B h w C"]:
        # Drop path: the whole residual branch is dropped for an image.
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)
        x = x + drop_path(self._attend(LayerNorm(self.dtype, name="norm1")(x)))
        return x + drop_path(self._mlp(LayerNorm(self.dtype, name="norm2")(x)))

    def _attend(self, y):
        _, h, w, _ = y.shape
        pad_h, pad_w = -h % self.window, -w % self.window
        y = jnp.pad(y, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))  # after the norm, so padded tokens are zero
        shift_bias = None
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
            shift_bias = shifted_window_bias(h + pad_h, w + pad_w, self.window, self.shift)
        y = partition_windows(y, self.window)
        y = WindowAttention(self.num_heads, self.window, self.dtype, name="attention")(y, shift_bias)
        y = merge_windows(y, self.window, h + pad_h, w + pad_w)
        if self.shift:
            y = jnp.roll(y, (self.shift, self.shift), axis=(1, 2))
        return y[:, :h, :w]

    def _mlp(self, y):
        c = y.shape[-1]
        y = Dense(self.mlp_ratio * c, dtype=self.dtype, kernel_init=truncated_normal, name="fc1")(y)
        return GeluDense(c, self.dtype, truncated_normal, name="fc2")(y)


class PatchMerging(nn.Module):
    """Merge each 2x2 block of tokens into one: (B, h, w, C) -> (B, ceil(h/2), ceil(w/2), 2C)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h_out w_out 2*C"]:
        _, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        blocks = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = LayerNorm(self.dtype, name="norm")(jnp.concatenate(blocks, axis=-1))
        return Dense(2 * c, use_bias=False, dtype=self.dtype, kernel_init=truncated_normal, name="reduction")(x)


class Swin(Backbone):
    """Normalized images -> [res2, res3, res4, res5] at strides 4, 8, 16, 32 with embed_dim * 2**i channels.

    `drop_path` is the rate of the last block; the rates rise linearly from 0. In training it draws from the random
    stream "dropout".
    """

    embed_dim: int
    blocks: Sequence[int]
    heads: Sequence[int]
    window: int
    mlp_ratio: int = 4
    drop_path: float = 0.3
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> list[Float[Array, "B _ _ _"]]:
        x = ImageConv(self.embed_dim, 4, 4, dtype=self.dtype, name="patch_embed")(images)
        x = LayerNorm(self.dtype, name="patch_norm")(x)
        drop_path = iter(np.linspace(0, self.drop_path, sum(self.blocks)).tolist())
        block_type = nn.remat(SwinBlock, static_argnums=(2,)) if self.remat else SwinBlock
        features = []
        for stage, (count, heads) in enumerate(zip(self.blocks, self.heads, strict=True)):
            if stage > 0:
                x = PatchMerging(self.dtype, name=f"stage{stage - 1}_merge")(x)
            for i in range(count):
                shift = self.window // 2 if i % 2 else 0
                fields = heads, self.window, shift, self.mlp_ratio, next(drop_path), self.dtype
                x = block_type(*fields, name=f"stage{stage}_block{i}")(x, train)
            features.append(LayerNorm(self.dtype, name=f"norm{stage}")(x))
        return features

    def layers(self) -> list[list[str]]:
        """As SimMIM numbers them: the embedding, then each block; the last of a stage with the merging behind it."""
        found = [["patch_embed", "patch_norm"]]
        for stage, count in enumerate(self.blocks):
            if stage > 0:
                found[-1].append(f"stage{stage - 1}_merge")
            found += [[f"stage{stage}_block{i}"] for i in range(count)]
        return found
