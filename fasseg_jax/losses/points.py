"""Random points, bilinear samples of masks at them, and the choice of the most uncertain ones (SPEC section 5).

Points are xy in [0, 1] of a map's width and height, pixel centres at half-integers; outside of a map is zero. Gathers
are written one for each of a point's four corners, which XLA fuses with the interpolation.
"""

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

__all__ = ["SamplingPoints", "draw_loss_points", "draw_matching_points", "importance_counts"]


@flax.struct.dataclass
class SamplingPoints:
    """All random points of one evaluation of the loss, to be given in place of a random key for reproduction.

    Attributes:
      matching: (L+1, B, P, 2), at which predictions and targets are compared for matching.
      oversampled: (L+1, B, T, 3P, 2), of each pair, by its target; the most uncertain of them are kept.
      uniform: (L+1, B, T, P - int(0.75 P), 2), of each pair, used as they are.

    The numbers 3 and 0.75 are `oversample_ratio` and `importance_ratio` of `config.loss`. What stands in the places of
    padded targets is not looked at.
    """

    matching: jax.Array
    oversampled: jax.Array
    uniform: jax.Array


def importance_counts(config: ConfigDict) -> tuple[int, int, int]:
    """Numbers of points (oversampled, kept of these, uniform) for `config.loss`."""
    kept = int(config.importance_ratio * config.num_points)
    return int(config.oversample_ratio * config.num_points), kept, config.num_points - kept


def draw_matching_points(key: jax.Array, prediction: jax.Array, image: jax.Array, count: int) -> jax.Array:
    """Points (count, 2) that depend on nothing but the key and the two numbers, () int32."""
    return draw(jax.random.fold_in(jax.random.fold_in(key, prediction), image), count)


def draw_loss_points(
    key: jax.Array, prediction: jax.Array, image: jax.Array, target: jax.Array, counts: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Points (oversampled, 2) and (uniform, 2) that depend on nothing but the key and the three numbers, () int32."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, prediction), image), target)
    points = draw(key, sum(counts))
    return points[: counts[0]], points[counts[0] :]


def draw(key: jax.Array, count: int) -> jax.Array:
    """Uniform points (count, 2), multiples of 2**-16 and a half of that, both coordinates from one random word.

    Behind a barrier, as XLA would draw the words anew in each place that the points are used.
    """
    words = jax.lax.optimization_barrier(jax.random.bits(key, (count,), jnp.uint32))
    return (jnp.stack([words >> 16, words & 0xFFFF], axis=-1).astype(jnp.float32) + 0.5) * 2**-16
