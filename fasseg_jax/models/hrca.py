"""High-resolution cross attention (paper section 3.3): which stride-4 tokens a high-resolution layer attends to.

The numbers of tokens depend only on the input size, so the selection is a top-k of static shape.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fasseg_jax.ops.resize import resize_bilinear
from fasseg_jax.ops.selection import top_indices

__all__ = ["WINDOW", "gather_tokens", "select_pixels", "select_windows", "window_tokens"]

WINDOW = 8  # stride-4 tokens along a side of a stride-32 token


def select_windows(attention: Float[Array, "B Q N"], omega: int) -> Int[Array, "B k"]:
    """The k = max(1, N // omega) low-resolution tokens that all queries together attend to most (equation 6).

    Args:
      attention: of the latest layer at stride 32.
      omega: selects one in omega tokens.

    Returns:
      Row-major indices of stride-32 tokens, the most attended first.
    """
    return top_indices(attention.sum(axis=1), max(1, attention.shape[-1] // omega))


def window_tokens(windows: Int[Array, "B k"], width: int) -> Int[Array, "B k*64"]:
    """Row-major indices of the stride-4 tokens in the given stride-32 tokens, of a map `width` wide at stride 32."""
    row, column = windows // width, windows % width  # (B, k)
    inner = jnp.arange(WINDOW)
    rows = (row[..., None] * WINDOW + inner)[..., :, None]  # (B, k, 8, 1)
    columns = (column[..., None] * WINDOW + inner)[..., None, :]  # (B, k, 1, 8)
    return (rows * width * WINDOW + columns).reshape(windows.shape[0], -1)  # (B, k, 8, 8) -> (B, k * 64)


def select_pixels(attention: Float[Array, "B Q N"], omega: int, shape: tuple[int, int]) -> Int[Array, "B n"]:
    """The paper's formulation: the top stride-4 tokens of the upsampled attention, as many as k windows hold.

    Args:
      attention: of the latest layer at stride 32.
      omega: selects one in omega tokens.
      shape: (h, w) at stride 32, h * w = N.

    Returns:
      Row-major indices of n = k * 64 stride-4 tokens, the most attended first.
    """
    h, w = shape
    scores = attention.sum(axis=1).reshape(-1, h, w, 1)  # (B, N) -> (B, h, w, 1)
    scores = resize_bilinear(scores, (h * WINDOW, w * WINDOW)).reshape(attention.shape[0], -1)  # (B, 64 N)
    k = max(1, attention.shape[-1] // omega)
    return top_indices(scores, k * WINDOW**2)


def gather_tokens(feature: Float[Array, "B h w C"], tokens: Int[Array, "B n"]) -> Float[Array, "B n C"]:
    """Tokens of a map by their row-major indices."""
    flat = feature.reshape(feature.shape[0], -1, feature.shape[-1])  # (B, h * w, C)
    return jnp.take_along_axis(flat, tokens[..., None], axis=1)
