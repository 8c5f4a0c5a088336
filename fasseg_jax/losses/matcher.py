"""Matching of queries to targets by class, mask and Dice costs (docs/specification.md, section 5).

Computes the costs of `reference.matching_cost`. The differences: the costs of all pairs of an image come from matmuls
over the points, for the real targets only, a few classes at a time; and a target's mask comes from the labels around
each point, without being formed.
"""

import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32
from ml_collections import ConfigDict

from fasseg_jax.losses.targets import Targets, loop_over_targets
from fasseg_jax.ops.assignment import assign
from fasseg_jax.ops.point_sampling import LabelsAndWeights, masks_of_classes

__all__ = ["match", "matching_costs"]

CLASSES_AT_ONCE = 16
PARTS = 64  # of the points of an image on a GPU, at most
FACTORS = 16  # of a product of probabilities, at most


def match(costs: Float[Array, "L1 B Q T"], targets: Targets) -> tuple[Int32[Array, "L1 B T"], Int32[Array, ""]]:
    """Assign a query to each target so that the sum of the costs is least.

    All predictions and images are solved side by side: on a TPU or GPU, a turn of the solver's loops takes as long for
    one of them as for all.

    Args:
      costs: `matching_costs` of each prediction.
      targets: of the images.

    Returns:
      The query of each target, -1 for padding; and how many costs of real targets were NaN or infinite. `assign`
      replaces these.
    """
    non_finite = (~jnp.isfinite(costs) & targets.valid[:, None]).sum(dtype=jnp.int32)
    counts = targets.valid.sum(axis=1, dtype=jnp.int32)
    return jax.vmap(jax.vmap(assign), in_axes=(0, None))(costs, counts), non_finite


def matching_costs(
    class_logits: Float[Array, "B Q K1"],
    mask_logits: Float[Array, "B P Q"],
    targets: Targets,
    labels: LabelsAndWeights,
    config: ConfigDict,
    precision: str = "highest",
) -> Float[Array, "B Q T"]:
    """What it would cost to match each query with each target, by one prediction (Mask2Former, section 3.3).

    Args:
      class_logits: "no object" last.
      mask_logits: of all queries at the points where masks are compared.
      targets: of the same images. Costs of padding may be anything.
      labels: `sample_labels` of the targets at these points.
      config: `config.loss`.
      precision: of the sums over points.
    """
    class_probabilities = jax.nn.softmax(class_logits)  # (B, Q, K1)
    masks = SampledMasks.of(mask_logits)

    def costs_of(classes):  # (B, t) -> (B, Q, t)
        truth = masks_of_classes(labels, classes)  # (B, P, t)
        return (
            config.class_weight * class_cost(class_probabilities, classes)
            + config.mask_weight * mask_cost(masks, truth, precision)
            + config.dice_weight * dice_cost(masks, truth, precision)
        )

    return _costs_of_all(costs_of, targets, num_queries=class_logits.shape[1])


@flax.struct.dataclass
class SampledMasks:
    """The queries' masks at the points, and what their costs with all targets have in common."""

    logits: Float[Array, "B P Q"]
    probabilities: Float[Array, "B P Q"]
    softplus_sums: Float[Array, "B Q"]
    probability_sums: Float[Array, "B Q"]

    @classmethod
    def of(cls, logits: Float[Array, "B P Q"]) -> "SampledMasks":
        """The masks of these logits."""
        probabilities = jax.nn.sigmoid(logits)
        # softplus(x) = max(x, 0) - log(max(p, 1 - p)), where p is the probability of x: as good in a sum as with log1p.
        likelier = jnp.maximum(probabilities, 1 - probabilities)
        softplus_sums = jnp.maximum(logits, 0).sum(axis=1) - log_sums(likelier)
        return cls(logits, probabilities, softplus_sums, probabilities.sum(axis=1))


def log_sums(probabilities: Float[Array, "B P Q"]) -> Float[Array, "B Q"]:
    """The logarithms of probabilities of at least one half, summed over the points.

    On a CPU the logarithms of some points are one, of their product, which is at least 2**-FACTORS. That takes half the
    time. On a TPU it would take longer.
    """

    def by_products(probabilities):
        b, points, q = probabilities.shape
        products = probabilities.reshape(b, -1, math.gcd(points, FACTORS), q).prod(axis=2)
        return jnp.log(products).sum(axis=1)

    def one_by_one(probabilities):
        return jnp.log(probabilities).sum(axis=1)

    return jax.lax.platform_dependent(probabilities, cpu=by_products, default=one_by_one)


def class_cost(probabilities: Float[Array, "B Q K1"], classes: Int32[Array, "B t"]) -> Float[Array, "B Q t"]:
    """The negative probability of the target's class."""
    return -jnp.take_along_axis(probabilities, jnp.maximum(classes, 0)[:, None], axis=-1)


def mask_cost(masks: SampledMasks, truth: Float[Array, "B P t"], precision: str) -> Float[Array, "B Q t"]:
    """Binary cross-entropy, the mean over points: of logit x and truth g it is softplus(x) - x g."""
    product = sum_over_points(masks.logits, truth, precision)
    return (masks.softplus_sums[..., None] - product) / truth.shape[1]


def dice_cost(masks: SampledMasks, truth: Float[Array, "B P t"], precision: str) -> Float[Array, "B Q t"]:
    """One less the smoothed Dice coefficient."""
    product = sum_over_points(masks.probabilities, truth, precision)
    total = masks.probability_sums[..., None] + truth.sum(axis=1)[:, None]
    return 1 - (2 * product + 1) / (total + 1)


def sum_over_points(
    masks: Float[Array, "B P Q"], truth: Float[Array, "B P t"], precision: str
) -> Float[Array, "B Q t"]:
    """The products summed over the points; on a GPU over some points at a time.

    One matmul an image has few rows and columns there, so that most of the GPU would be idle.
    """

    def at_once(masks, truth):
        return jnp.einsum("bpq,bpt->bqt", masks, truth, precision=precision)

    def in_parts(masks, truth):
        parts = math.gcd(truth.shape[1], PARTS)
        masks, truth = (x.reshape(len(x), parts, -1, x.shape[2]) for x in (masks, truth))
        return jnp.einsum("bspq,bspt->bsqt", masks, truth, precision=precision).sum(axis=1)

    return jax.lax.platform_dependent(masks, truth, cuda=in_parts, rocm=in_parts, default=at_once)


def _costs_of_all(
    costs_of: Callable[[jax.Array], jax.Array], targets: Targets, num_queries: int
) -> Float[Array, "B Q T"]:
    """`costs_of(targets.classes)`, as far as there are targets, `CLASSES_AT_ONCE` at a time.

    A GPU computes those of padding too: it would wait longer for the host to learn how many targets there are.
    """
    num_images, max_targets = targets.classes.shape
    chunk = min(CLASSES_AT_ONCE, max_targets)

    def at_once(targets):
        return costs_of(targets.classes)

    def in_chunks(targets):
        def add_chunk(first, costs):
            # If the last chunk would reach beyond T, XLA moves both slices back alike, and some costs are computed
            # twice.
            classes = jax.lax.dynamic_slice_in_dim(targets.classes, first, chunk, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(costs, costs_of(classes), first, axis=2)

        most = targets.valid.sum(axis=1).max()
        return loop_over_targets(most, chunk, add_chunk, jnp.zeros((num_images, num_queries, max_targets)))

    return jax.lax.platform_dependent(targets, cuda=at_once, rocm=at_once, default=in_chunks)
