"""Fixed positional encodings of the keys (docs/specification.md, section 3)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["sine_positions"]


def sine_positions(height: int, width: int, channels: int) -> Float[Array, "{height} {width} {channels}"]:
    """Sine encodings of a map's positions: C/2 features of y, then C/2 of x, sine and cosine interleaved; float32.

    A coordinate is (i + 1) / (size + 1e-6) * 2 pi, divided by 10000^(2j / (C/2)) for the j-th pair.
    """
    half = channels // 2
    frequency = 10000.0 ** (2 * (np.arange(half) // 2) / half)  # (C/2,)

    def encode(size):
        angle = (np.arange(size) + 1)[:, None] / (size + 1e-6) * 2 * np.pi / frequency  # (size, C/2)
        pairs = np.stack([np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])], axis=-1)
        return pairs.reshape(size, half)  # (size, C/4, 2) -> (size, C/2)

    y = np.broadcast_to(encode(height)[:, None], (height, width, half))
    x = np.broadcast_to(encode(width)[None, :], (height, width, half))
    return jnp.asarray(np.concatenate([y, x], axis=-1), jnp.float32)
