"""Matching of the queries of one prediction to target segments, without gradient (SPEC section 5)."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fasseg_jax.losses.targets import Targets
from fasseg_jax.ops.assignment import assign
from fasseg_jax.ops.point_sampling import sample_labels, sample_masks_at_shared_points

__all__ = ["match", "matching_costs"]

CLASSES_AT_ONCE = 16


def matching_costs(
    class_logits: jax.Array, mask_logits: jax.Array, targets: Targets, points: jax.Array, config: ConfigDict
) -> jax.Array:
    """What each pair of a query and a target would cost, by one prediction (Mask2Former, section 3.3).

    Args:
      class_logits: (B, Q, K + 1).
      mask_logits: (B, h, w, Q), queries last, so that the values of all masks at a pixel lie together.
      targets: `Targets`.
      points: (B, P, 2), xy in [0, 1].
      config: `config.loss`.

    Returns:
      (B, Q, T) float32, anything where a target is padding.
    """
    labels = jnp.maximum(targets.classes, 0)[:, None]  # (B, 1, T)
    class_costs = -jnp.take_along_axis(jax.nn.softmax(class_logits), labels, axis=-1)  # (B, Q, T)

    chunk = min(CLASSES_AT_ONCE, targets.classes.shape[1])
    num_chunks = -(-(targets.classes >= 0).sum(axis=1).max() // chunk)
    x = jax.vmap(sample_masks_at_shared_points)(mask_logits, points)  # (B, P, Q)
    corners = sample_labels(targets.labels, jnp.arange(len(points)), points)  # four times (B, P), (B, P)
    statistics = prediction_statistics(x)

    def add_chunk(i, costs):
        # Where the last chunk would reach beyond T, both slices move back alike and some costs are found twice.
        classes = jax.lax.dynamic_slice_in_dim(targets.classes, i * chunk, chunk, axis=1)
        g = sum(weight[..., None] * (label[..., None] == classes[:, None]) for label, weight in corners)
        part = mask_costs(x, statistics, g, config)  # g: (B, P, chunk)
        return jax.lax.dynamic_update_slice_in_dim(costs, part, i * chunk, axis=2)

    costs = jax.lax.fori_loop(0, num_chunks, add_chunk, jnp.zeros_like(class_costs))
    return config.class_weight * class_costs + costs


def prediction_statistics(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of logits x (B, P, Q): their probabilities (B, P, Q), and the sums (B, Q) of these and of softplus(x)."""
    probability = jax.nn.sigmoid(x)
    # softplus(x) = max(x, 0) - log(sigmoid(|x|)), several times faster on a CPU than with log1p and as good in a sum.
    softplus = jnp.maximum(x, 0) - jnp.log(jax.nn.sigmoid(jnp.abs(x)))
    return probability, probability.sum(axis=1), softplus.sum(axis=1)


def mask_costs(
    x: jax.Array, statistics: tuple[jax.Array, jax.Array, jax.Array], g: jax.Array, config: ConfigDict
) -> jax.Array:
    """Weighted cross-entropy and Dice costs (B, Q, T) of logits x (B, P, Q) against masks g (B, P, T).

    Summed over points, the cross-entropy of a pair is sum softplus(x) - sum x g: a matrix product.
    """
    probability, probability_sum, softplus_sum = statistics
    product = lambda a: jnp.einsum("bpq,bpt->bqt", a, g, precision="highest")
    cross_entropy = (softplus_sum[..., None] - product(x)) / x.shape[1]
    total = probability_sum[..., None] + g.sum(axis=1)[:, None]
    dice = 1 - (2 * product(probability) + 1) / (total + 1)
    return config.mask_weight * cross_entropy + config.dice_weight * dice


def match(
    class_logits: jax.Array, mask_logits: jax.Array, targets: Targets, points: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Assigns a query to each target, at the least cost.

    Args:
      class_logits: (B, Q, K + 1), of one prediction.
      mask_logits: (B, h, w, Q).
      targets: `Targets`.
      points: (B, P, 2), xy in [0, 1].
      config: `config.loss`.

    Returns:
      The queries (B, T) int32, -1 where a target is padding; and the number of costs of real targets that were NaN or
      infinite, () int32, which `assign` replaces.
    """
    costs = matching_costs(class_logits, mask_logits, targets, points, config)
    valid = targets.classes >= 0  # (B, T)
    non_finite = (~jnp.isfinite(costs) & valid[:, None]).sum(dtype=jnp.int32)
    return jax.vmap(assign)(costs, valid.sum(axis=1, dtype=jnp.int32)), non_finite
