"""Mask losses at points that all pairs of an image share, in all predictions (`config.loss.shared_points`).

Computes what `mask_loss.py` computes when it is given the same points for each pair. The differences:

- A bilinear sample of a mask is the product of the query's embedding with a sample of the features. So the features are
  sampled once, and no mask is formed.
- The least certain points are not collected: all points are weighted, and those that are not chosen have weight zero.
  Equally uncertain points at the threshold share what is left, where `mask_loss.py` takes the first of them.
- All predictions take part in each turn of the loop over targets.

The official program draws points for each pair by itself. What a pair's points are is equally random here, but they are
not independent of those of another pair.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32
from ml_collections import ConfigDict

from fasseg_jax.losses.mask_terms import MaskLosses, losses_at_points, with_gradient
from fasseg_jax.losses.matcher import match, matching_costs
from fasseg_jax.losses.points import SharedPoints, point_counts
from fasseg_jax.losses.targets import Targets, loop_over_targets
from fasseg_jax.models.predictions import FactoredPredictions, mask_precision
from fasseg_jax.ops.point_sampling import (
    LabelsAndWeights,
    masks_of_classes,
    pack_labels,
    sample_labels,
    sample_masks_at_shared_points,
)
from fasseg_jax.ops.selection import uncertainty_weights

__all__ = ["shared_mask_losses"]

TARGETS_AT_ONCE = 4  # of each image, with all predictions


def shared_mask_losses(
    predictions: FactoredPredictions, targets: Targets, points: SharedPoints, config: ConfigDict
) -> MaskLosses:
    """Match queries with targets, and compare the masks of each pair. `config` is `config.loss`."""
    sample_features = jax.vmap(sample_masks_at_shared_points)
    labels, image = pack_labels(targets.labels), jnp.arange(len(targets.labels))
    class_logits, embeddings = jax.lax.stop_gradient((predictions.class_logits, predictions.mask_embeddings))
    precision = mask_precision(embeddings)

    features = sample_features(jax.lax.stop_gradient(predictions.mask_features), points.matching)  # (B, P, C)
    matching_labels = sample_labels(labels, image, points.matching)

    def costs_of(inputs):
        class_logits, embeddings = inputs
        mask_logits = jnp.einsum("bqc,bpc->bpq", embeddings, features, precision=precision)
        return matching_costs(class_logits, mask_logits, targets, matching_labels, config, precision)

    queries, non_finite = match(jax.lax.map(costs_of, (class_logits, embeddings)), targets)

    loss_points = jnp.concatenate([points.oversampled, points.uniform], axis=1)  # (B, S, 2)
    factors = predictions.mask_embeddings.astype(jnp.float32), sample_features(predictions.mask_features, loss_points)
    cross_entropy, dice, gradients = loss_and_gradients(
        embeddings,
        jax.lax.stop_gradient(factors[1]),
        queries,
        targets.classes,
        sample_labels(labels, image, loss_points),
        config,
    )
    weighted = (config.mask_weight * cross_entropy + config.dice_weight * dice).sum()
    return MaskLosses(queries, non_finite, cross_entropy, dice, with_gradient(weighted, factors, gradients))


def loss_and_gradients(
    embeddings: Float[Array, "L1 B Q C"],
    features: Float[Array, "B S C"],
    queries: Int32[Array, "L1 B T"],
    classes: Int32[Array, "B T"],
    labels: LabelsAndWeights,
    config: ConfigDict,
) -> tuple[Float[Array, "L1"], Float[Array, "L1"], tuple[Float[Array, "L1 B Q C"], Float[Array, "B S C"]]]:
    """Cross-entropy and Dice loss of each prediction, and the gradients of their weighted sum.

    The loop runs over the real targets, whose number is known only at run time. JAX cannot differentiate such a loop,
    so each turn computes its gradients, too.

    Args:
      embeddings: of all queries.
      features: at the S points of each image, the oversampled ones first.
      queries: of each target, -1 for padding.
      classes: of each target.
      labels: the ground truth at the points.
      config: `config.loss`.
    """
    num_queries, counts = embeddings.shape[2], point_counts(config)
    padding = -queries.shape[2] % TARGETS_AT_ONCE
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, padding)), constant_values=-1).transpose(1, 2, 0)  # (B, T, L1)
    classes = jnp.pad(classes, ((0, 0), (0, padding)), constant_values=-1)
    image = jnp.arange(len(queries))[:, None, None]
    prediction = jnp.arange(queries.shape[2])
    product = partial(jnp.einsum, "btlc,bsc->btls", precision=mask_precision(embeddings))

    def point_weights(logits):  # (B, t, L1, S)
        candidates = logits[..., : counts.oversampled]
        weights = uncertainty_weights(candidates.reshape(-1, counts.oversampled), counts.important)
        weights = weights.reshape(candidates.shape)
        return jnp.pad(weights, (*[(0, 0)] * 3, (0, counts.uniform)), constant_values=1.0)

    def add_targets(first, state):
        sums, (grad_embeddings, grad_features) = state
        query = jax.lax.dynamic_slice_in_dim(queries, first, TARGETS_AT_ONCE, axis=1)  # (B, t, L1)
        truth = masks_of_classes(labels, jax.lax.dynamic_slice_in_dim(classes, first, TARGETS_AT_ONCE, axis=1))
        truth = truth.swapaxes(1, 2)[:, :, None]  # (B, t, 1, S)

        def loss(matched, features):
            logits = product(matched, features)
            weights = point_weights(jax.lax.stop_gradient(logits))
            losses = losses_at_points(logits, truth, config.num_points, weights)
            cross_entropy, dice = (jnp.where(query >= 0, x, 0).sum(axis=(0, 1)) for x in losses)
            return (config.mask_weight * cross_entropy + config.dice_weight * dice).sum(), (cross_entropy, dice)

        matched = embeddings[prediction, image, query].astype(jnp.float32)  # (B, t, L1, C)
        (grad_matched, more_features), more = jax.grad(loss, argnums=(0, 1), has_aux=True)(matched, features)
        index = jnp.where(query >= 0, query, num_queries)  # the scatter drops what belongs to no query
        grad_embeddings = grad_embeddings.at[prediction, image, index].set(grad_matched, mode="drop")
        return jax.tree.map(jnp.add, sums, more), (grad_embeddings, grad_features + more_features)

    zeros = jnp.zeros(len(embeddings))
    start = (zeros, zeros), (jnp.zeros(embeddings.shape), jnp.zeros_like(features))
    most = (queries >= 0).any(axis=2).sum(axis=1).max()
    (cross_entropy, dice), gradients = loop_over_targets(most, TARGETS_AT_ONCE, add_targets, start)
    return cross_entropy, dice, gradients
