"""High-resolution cross attention (paper section 3.3): which stride-4 tokens a high-resolution layer attends to.

All numbers of tokens follow from the input size alone, so the selection is a static-shape top-k.
"""

import jax
import jax.numpy as jnp

from fasseg_jax.ops.resize import resize_bilinear
from fasseg_jax.ops.selection import top_places

__all__ = ["WINDOW", "gather_tokens", "select_pixels", "select_windows", "window_tokens"]

WINDOW = 8  # stride-4 tokens along a side of a stride-32 token


def select_windows(attention: jax.Array, omega: int) -> jax.Array:
    """The k = max(1, N // omega) low-resolution tokens that all queries together attend to most.

    Args:
      attention: (B, Q, N), of the latest layer at stride 32.
      omega: one in omega tokens is kept.

    Returns:
      (B, k) int32, row-major stride-32 tokens, the most attended first (equation 6).
    """
    return top_places(attention.sum(axis=1), max(1, attention.shape[-1] // omega))


def window_tokens(windows: jax.Array, width: int) -> jax.Array:
    """Stride-4 tokens of the given stride-32 tokens: (B, k) -> (B, k * 64) row-major indices; `width` at stride 32."""
    row, column = windows // width, windows % width  # (B, k)
    inner = jnp.arange(WINDOW)
    rows = (row[..., None] * WINDOW + inner)[..., :, None]  # (B, k, 8, 1)
    columns = (column[..., None] * WINDOW + inner)[..., None, :]  # (B, k, 1, 8)
    return (rows * width * WINDOW + columns).reshape(windows.shape[0], -1)  # (B, k, 8, 8) -> (B, k * 64)


def select_pixels(attention: jax.Array, omega: int, shape: tuple[int, int]) -> jax.Array:
    """The paper's formulation: the top stride-4 tokens of the upsampled attention, as many as k windows hold.

    Args:
      attention: (B, Q, N), of the latest layer at stride 32.
      omega: one in omega tokens is kept.
      shape: (h, w) at stride 32, h * w = N.

    Returns:
      (B, k * 64) int32, row-major stride-4 tokens, the most attended first.
    """
    h, w = shape
    scores = attention.sum(axis=1).reshape(-1, h, w, 1)  # (B, N) -> (B, h, w, 1)
    scores = resize_bilinear(scores, (h * WINDOW, w * WINDOW)).reshape(attention.shape[0], -1)  # (B, 64 N)
    k = max(1, attention.shape[-1] // omega)
    return top_places(scores, k * WINDOW**2)


def gather_tokens(feature: jax.Array, tokens: jax.Array) -> jax.Array:
    """Tokens of a map by their row-major indices: (B, h, w, C), (B, n) -> (B, n, C)."""
    flat = feature.reshape(feature.shape[0], -1, feature.shape[-1])  # (B, h * w, C)
    return jnp.take_along_axis(flat, tokens[..., None], axis=1)
