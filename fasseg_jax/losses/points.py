"""The random points at which masks are compared (docs/specification.md, section 5).

Points are xy in [0, 1] of a map's width and height, pixel centers at half-integers.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

__all__ = [
    "PairPoints",
    "PointCounts",
    "Randomness",
    "SamplingPoints",
    "SharedPoints",
    "draw_loss_points",
    "draw_matching_points",
    "pair_points",
    "point_counts",
    "shared_points",
]

Index = int | Int[Array, ""]
# Prediction, image and target of a matched pair -> its oversampled and its uniform points. Images are numbered within
# the batch of this device.
PairPoints = Callable[[Index, Index, Index], tuple[Float[Array, "oversampled 2"], Float[Array, "uniform 2"]]]


@flax.struct.dataclass
class SamplingPoints:
    """All points of one call of the loss. Given in place of a random key, they reproduce a recorded loss.

    Attributes:
      matching: all queries and targets of an image are compared at these for matching.
      oversampled: of each pair, by its target. The loss keeps the most uncertain of them.
      uniform: of each pair, by its target. The loss uses all of them.

    Points of padded targets may hold anything.
    """

    matching: Float[Array, "L1 B P 2"]
    oversampled: Float[Array, "L1 B T oversampled 2"]
    uniform: Float[Array, "L1 B T uniform 2"]


@flax.struct.dataclass
class SharedPoints:
    """All points of one call of the loss with `config.loss.shared_points`, in place of `SamplingPoints`.

    All pairs of an image are compared at the same points, in all predictions.
    """

    matching: Float[Array, "B P 2"]
    oversampled: Float[Array, "B oversampled 2"]
    uniform: Float[Array, "B uniform 2"]


Randomness = Key[Array, ""] | SamplingPoints | SharedPoints


class PointCounts(NamedTuple):
    """How many points a matched pair has.

    Attributes:
      oversampled: drawn as candidates, 3 P in the recipe.
      important: of these, the most uncertain ones, which are kept: int(0.75 P).
      uniform: drawn and used as they are, P less `important`.
    """

    oversampled: int
    important: int
    uniform: int


def point_counts(config: ConfigDict) -> PointCounts:
    """The counts that `config.loss` asks for."""
    important = int(config.importance_ratio * config.num_points)
    return PointCounts(int(config.oversample_ratio * config.num_points), important, config.num_points - important)


def pair_points(
    randomness: Randomness,
    config: ConfigDict,
    num_predictions: int,
    num_images: int,
    first_image: Index,
) -> tuple[Float[Array, "L1 B P 2"], PairPoints]:
    """The matching points, and the function that gives those of a pair: those of all pairs would fill the memory.

    Args:
      randomness: the key that draws them, or the points themselves.
      config: `config.loss`.
      num_predictions: L + 1.
      num_images: of this device.
      first_image: the number in the global batch of this device's first image.

    Raises:
      ValueError: the points are of the other kind, or more or fewer than `config` asks for.
    """
    if isinstance(randomness, SharedPoints):
        raise ValueError("config.loss.shared_points = False takes SamplingPoints, not SharedPoints")
    if isinstance(randomness, SamplingPoints):
        points = randomness
        _check_counts(points, config)
        return points.matching, lambda *pair: (points.oversampled[pair], points.uniform[pair])

    matching_key, loss_key = jax.random.split(randomness)

    def of_image(prediction, image):
        return draw_matching_points(matching_key, prediction, first_image + image, config.num_points)

    def of_pair(prediction, image, target):
        return draw_loss_points(loss_key, prediction, first_image + image, target, point_counts(config))

    of_images = jax.vmap(of_image, in_axes=(None, 0))
    of_all = jax.vmap(of_images, in_axes=(0, None))
    return of_all(jnp.arange(num_predictions), jnp.arange(num_images)), of_pair


def shared_points(randomness: Randomness, config: ConfigDict, num_images: int, first_image: Index) -> SharedPoints:
    """The points of all images with `config.shared_points`. Arguments and errors as of `pair_points`.

    They are a lattice at a random place. What all pairs share would add up the chance of independent points, which
    pairs of their own average out.
    """
    if isinstance(randomness, SamplingPoints):
        raise ValueError("config.loss.shared_points = True takes SharedPoints, not SamplingPoints")
    if isinstance(randomness, SharedPoints):
        _check_counts(randomness, config)
        return randomness

    counts = point_counts(config)
    matching, total = config.num_points, config.num_points + counts.oversampled + counts.uniform

    def of_image(image):
        lattice = _shifted_lattice(jax.random.fold_in(randomness, image), total)
        return jnp.split(lattice, (matching, total - counts.uniform))

    return SharedPoints(*jax.vmap(of_image)(first_image + jnp.arange(num_images)))


def _check_counts(points: SamplingPoints | SharedPoints, config: ConfigDict) -> None:
    wanted = point_counts(config)
    given = tuple(x.shape[-2] for x in (points.matching, points.oversampled, points.uniform))
    if given != (config.num_points, wanted.oversampled, wanted.uniform):
        raise ValueError(
            f"{type(points).__name__} has {given} points for matching, oversampled and uniform; "
            f"config.loss wants {(config.num_points, wanted.oversampled, wanted.uniform)}"
        )


def draw_matching_points(key: Key[Array, ""], prediction: Index, image: Index, count: int) -> Float[Array, "{count} 2"]:
    """Draw the points of one prediction and image; they depend only on the key and on these two numbers."""
    return _draw(jax.random.fold_in(jax.random.fold_in(key, prediction), image), count)


def draw_loss_points(
    key: Key[Array, ""], prediction: Index, image: Index, target: Index, counts: PointCounts
) -> tuple[Float[Array, "oversampled 2"], Float[Array, "uniform 2"]]:
    """Draw the points of one pair; they depend only on the key and on the three numbers."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, prediction), image), target)
    points = _draw(key, counts.oversampled + counts.uniform)
    return points[: counts.oversampled], points[counts.oversampled :]


def _shifted_lattice(key: jax.Array, count: int) -> jax.Array:
    """Points (count, 2) of which each is uniform, and any run of them covers the map evenly.

    Multiples of two irrational numbers plus a random shift, modulo 1. With g^3 = g + 1, the numbers 1/g and 1/g^2 leave
    the smallest gaps (Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018).
    """
    steps = np.round(np.array([0.7548776662466927, 0.5698402909980532]) * 2**32).astype(np.uint32)
    multiples = jnp.arange(count, dtype=jnp.uint32)[:, None] * steps  # modulo 2**32, as the sum
    words = jax.random.bits(key, (2,), jnp.uint32) + multiples
    return _centers(words >> 16)


def _draw(key: jax.Array, count: int) -> jax.Array:
    """Independent uniform points (count, 2), both coordinates from one random word.

    Without the barrier XLA would draw the words again wherever the points are used. The stack comes last and is taken
    apart where the points are used, so XLA leaves it out: on a TPU, an axis of two wastes most of each register.
    """
    words = jax.lax.optimization_barrier(jax.random.bits(key, (count,), jnp.uint32))
    return jnp.stack([_centers(words >> 16), _centers(words & 0xFFFF)], axis=-1)


def _centers(half_words: jax.Array) -> jax.Array:
    """Coordinates in [0, 1]: centers of 2**16 cells."""
    return (half_words.astype(jnp.float32) + 0.5) * 2**-16
