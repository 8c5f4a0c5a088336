"""Random points, bilinear samples of masks at them, and the choice of the most uncertain ones (SPEC section 5).

Points are xy in [0, 1] of a map's width and height, pixel centres at half-integers; outside of a map is zero. Gathers
are written one for each of a point's four corners, which XLA fuses with the interpolation.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

__all__ = [
    "SamplingPoints",
    "draw_loss_points",
    "draw_matching_points",
    "importance_counts",
    "most_uncertain",
    "sample_labels",
    "sample_masks",
    "sample_masks_at_shared_points",
]


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


def corners(points: jax.Array, shape: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
    """Row-major places, int32, and bilinear weights of the four pixels around each point, all (..., P).

    A pixel outside of the map has weight zero, and the place of one inside.
    """
    h, w = shape
    x, y = points[..., 0] * w - 0.5, points[..., 1] * h - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)

    def corner(column, row, weight):
        inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
        place = jnp.clip(row, 0, h - 1).astype(jnp.int32) * w + jnp.clip(column, 0, w - 1).astype(jnp.int32)
        return place, jnp.where(inside, weight, 0)

    return [
        corner(x0, y0, (x0 + 1 - x) * (y0 + 1 - y)),
        corner(x0 + 1, y0, (x - x0) * (y0 + 1 - y)),
        corner(x0, y0 + 1, (x0 + 1 - x) * (y - y0)),
        corner(x0 + 1, y0 + 1, (x - x0) * (y - y0)),
    ]


def sample_masks(masks: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear samples of masks (N, h, w), each at points of its own (N, P, 2): (N, P).

    A TPU gathers single numbers so slowly that matrix products take a hundredth of the time (by its compiler's
    estimate, 128 x 128 masks), forward and backward.
    """
    return jax.lax.platform_dependent(masks, points, tpu=sample_by_products, default=sample_by_gathers)


def sample_by_gathers(masks: jax.Array, points: jax.Array) -> jax.Array:
    """`sample_masks` as one gather for each corner."""
    size = masks.shape[1] * masks.shape[2]
    flat, start = jnp.reshape(masks, -1), size * jnp.arange(len(masks))[:, None]  # (N * h * w,), (N, 1)
    take = lambda place: flat.at[start + place].get(mode="promise_in_bounds")  # (N, P)
    return sum(weight * take(place) for place, weight in corners(points, masks.shape[1:]))


def sample_by_products(masks: jax.Array, points: jax.Array) -> jax.Array:
    """`sample_masks` as the sum over all pixels, by what a tent of one pixel's size around a point leaves of each."""
    tent = lambda position, size: jnp.maximum(1 - jnp.abs(position[..., None] * size - 0.5 - jnp.arange(size)), 0)
    x, y = points[..., 0], points[..., 1]
    rows = jnp.einsum("nph,nhw->npw", tent(y, masks.shape[1]), masks, precision="highest")  # (N, P, w)
    return (rows * tent(x, masks.shape[2])).sum(axis=-1)


def sample_masks_at_shared_points(masks: jax.Array, points: jax.Array) -> jax.Array:
    """Bilinear samples of masks (h, w, N), whose values at a pixel lie together, at points (P, 2): (P, N)."""
    rows = masks.reshape(-1, masks.shape[2])  # (h, w, N) -> (h * w, N)
    take = lambda place: rows.at[place].get(mode="promise_in_bounds")  # (P, N)
    return sum(weight[:, None] * take(place) for place, weight in corners(points, masks.shape[:2]))


def sample_labels(labels: jax.Array, image: jax.Array, points: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Labels and bilinear weights of the four pixels around points (N, P, 2) of images (N,): all (N, P).

    The mask of class c, one where `labels` (B, H, W) is c, has the samples sum(weight * (label == c)), as fractional
    as those of any mask; so no mask is ever formed.
    """
    size = labels.shape[1] * labels.shape[2]
    flat = jnp.reshape(labels, -1)  # (B * H * W,)
    take = lambda place: flat.at[image[:, None] * size + place].get(mode="promise_in_bounds")
    return [(take(place), weight) for place, weight in corners(points, labels.shape[1:])]


def most_uncertain(logits: jax.Array, count: int) -> jax.Array:
    """Places of the `count` values nearest to zero in each row of (N, P) float32: (N, count) int32, ascending.

    Of equal magnitudes the first come first; NaN counts as the largest. The threshold is found by bisection over the
    bits of the magnitudes, whose order as integers is the same: a sort of such rows takes ten times longer.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(logits), jnp.uint32)
    # Each turn is some programs more to start on a GPU, and some comparisons less to make on a CPU.
    by_turns_of = lambda digit: functools.partial(value_of_rank, rank=count, digit=digit)
    threshold = jax.lax.platform_dependent(bits, cuda=by_turns_of(4), rocm=by_turns_of(4), default=by_turns_of(1))

    def first_of_equals():
        below, equal = bits < threshold, bits == threshold
        return below | (equal & (running_count(equal) <= count - below.sum(axis=-1, keepdims=True)))

    kept = bits <= threshold
    kept = jax.lax.cond((kept.sum(axis=-1) > count).any(), first_of_equals, lambda: kept)
    rank = jnp.where(kept, running_count(kept) - 1, count)  # (N, P)
    places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    fill = lambda rank: jnp.zeros(count + 1, jnp.int32).at[rank].set(places, mode="promise_in_bounds")
    return jax.vmap(fill)(rank)[:, :count]  # the last place took those not kept


def value_of_rank(bits: jax.Array, rank: int, digit: int) -> jax.Array:
    """The `rank`-th smallest value of each row of (N, P) uint32, (N, 1), found `digit` bits a turn from the highest.

    It is the largest number that fewer than `rank` values are below.
    """

    def add_digit(i, threshold):
        shift = (32 - digit * (i + 1)).astype(jnp.uint32)
        higher = threshold + (jnp.arange(1, 2**digit, dtype=jnp.uint32) << shift)  # (N, 2**digit - 1)
        # Counted in float32, exact up to 2**24, which a CPU does half as fast again as in int32.
        below = (bits[:, None] < higher[..., None]).sum(axis=-1, dtype=jnp.float32)
        return threshold + ((below < rank).sum(axis=-1, keepdims=True, dtype=jnp.uint32) << shift)

    return jax.lax.fori_loop(0, 32 // digit, add_digit, jnp.zeros_like(bits[:, :1]))


def running_count(chosen: jax.Array, block: int = 64) -> jax.Array:
    """Cumulative sums of rows (N, P) of bool, int32, in blocks: within each a fast product with a triangular matrix."""
    n, p = chosen.shape
    blocks = jnp.pad(chosen, ((0, 0), (0, -p % block))).reshape(-1, block).astype(jnp.float32)
    within = (blocks @ jnp.triu(jnp.ones((block, block)))).reshape(n, -1, block)  # (N, blocks, block)
    totals = within[..., -1]
    before = jnp.cumsum(totals, axis=-1) - totals
    return (within + before[..., None]).reshape(n, -1)[:, :p].astype(jnp.int32)
