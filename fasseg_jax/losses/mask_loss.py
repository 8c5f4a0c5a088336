"""Mask losses of matched pairs, at points chosen by importance, and their gradient (SPEC section 5).

Kirillov et al., "PointRend: Image Segmentation as Rendering", 2020, is where the choice of points comes from.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fasseg_jax.losses.matcher import match
from fasseg_jax.losses.points import importance_counts
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.predictions import FactoredPredictions
from fasseg_jax.ops.point_sampling import sample_labels, sample_masks
from fasseg_jax.ops.selection import most_uncertain

__all__ = ["MaskErrors", "mask_errors"]

# Pairs in one turn of the loop over them. A GPU wants few, large turns, as each is many small programs; a CPU is
# fastest with what fits its cache.
PAIRS_AT_ONCE = {"cuda": 128, "rocm": 128, "tpu": 16, "default": 4}
TARGETS_AT_ONCE = 8  # with all predictions, in the products of matrices that end the loss


@flax.struct.dataclass
class MaskErrors:
    """Sums over the matched pairs of the images of this device; only `weighted` carries a gradient.

    Attributes:
      queries: (L+1, B, T) int32, of each target, -1 for padding.
      non_finite_costs: () int32.
      cross_entropy: (L+1,).
      dice: (L+1,).
      weighted: () both with their weights, over all predictions.
    """

    queries: jax.Array
    non_finite_costs: jax.Array
    cross_entropy: jax.Array
    dice: jax.Array
    weighted: jax.Array


def mask_errors(
    predictions: FactoredPredictions, targets: Targets, points: jax.Array, points_of_pair: Callable, config: ConfigDict
) -> MaskErrors:
    """Matches queries to targets and compares the masks of the pairs.

    The gradient is found together with the loss: the loops below cannot be run backwards, and only the masks of matched
    queries have one, less than half of them.
    """
    class_logits, embeddings, features = jax.lax.stop_gradient(
        (predictions.class_logits, predictions.mask_embeddings, predictions.mask_features)
    )
    num_predictions, num_images = embeddings.shape[:2]
    max_targets = targets.classes.shape[1]

    def add_prediction(gradient, inputs):
        number, class_logits, embeddings, points = inputs
        mask_logits = jnp.einsum("bqc,bhwc->bhwq", embeddings, features, precision="highest")
        queries, non_finite = match(class_logits, mask_logits, targets, points, config)
        cross_entropy, dice, gradient = jax.lax.platform_dependent(
            gradient,
            number,
            mask_logits.transpose(0, 3, 1, 2),
            targets,
            queries,
            **{name: partial(add_pairs, points_of_pair, config, step) for name, step in PAIRS_AT_ONCE.items()},
        )
        return gradient, (queries, non_finite, cross_entropy, dice)

    # Of the masks of each target's queries, (B, T', L+1, h, w): with at least one row more than there are targets, the
    # place of what is no target.
    rows = (max_targets // TARGETS_AT_ONCE + 1) * TARGETS_AT_ONCE
    gradient = jnp.zeros((num_images, rows, num_predictions, *features.shape[1:3]))
    inputs = jnp.arange(num_predictions), class_logits, embeddings, points
    gradient, (queries, non_finite, cross_entropy, dice) = jax.lax.scan(add_prediction, gradient, inputs)

    weighted = (config.mask_weight * cross_entropy + config.dice_weight * dice).sum()
    factors = predictions.mask_embeddings, predictions.mask_features
    gradients = factor_gradients(gradient, embeddings, features, queries)
    return MaskErrors(queries, non_finite.sum(), cross_entropy, dice, with_gradient(weighted, factors, gradients))


def add_pairs(
    points_of_pair: Callable,
    config: ConfigDict,
    step: int,
    gradient: jax.Array,
    prediction: jax.Array,
    mask_logits: jax.Array,
    targets: Targets,
    queries: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the pairs of one prediction of cross-entropy and of Dice loss, both (), and the gradient with theirs.

    A loop over the real targets, whose number the program learns only as it runs, `step` at a time. `mask_logits` are
    (B, Q, h, w), `queries` (B, T); `gradient` is that of `mask_errors`.
    """
    num_images, max_targets = queries.shape
    places, num_targets = real_targets(targets.classes, step)

    def add_some(i, state):
        cross_entropy, dice, gradient = state
        place = jax.lax.dynamic_slice_in_dim(places, i * step, step)  # (N,)
        real = place < num_images * max_targets
        image, target = jnp.where(real, place // max_targets, 0), place % max_targets
        own_cross_entropy, own_dice, own_gradient = pair_losses(
            mask_logits[image, queries[image, target]],
            targets.labels,
            (jnp.full(step, prediction), image, target),
            targets.classes[image, target],
            points_of_pair,
            config,
        )
        row = jnp.where(real, target, max_targets)
        own_gradient = jnp.where(real[:, None, None], own_gradient, 0)

        gradient = set_rows(gradient, own_gradient, image, row, prediction)
        total = lambda x: jnp.where(real, x, 0).sum()
        return cross_entropy + total(own_cross_entropy), dice + total(own_dice), gradient

    start = jnp.zeros(()), jnp.zeros(()), gradient
    return jax.lax.fori_loop(0, -(-num_targets // step), add_some, start)


def set_rows(
    gradient: jax.Array, rows: jax.Array, image: jax.Array, target: jax.Array, prediction: jax.Array
) -> jax.Array:
    """`gradient` (B, T', L+1, h, w) with `rows` (N, h, w) at the given places, (N,), (N,) and ()."""

    def one_after_another(gradient):
        def set_row(j, gradient):  # each a copy of a whole map, which a scatter is not on a CPU or TPU
            start = image[j], target[j], prediction, 0, 0
            return jax.lax.dynamic_update_slice(gradient, rows[j][None, None, None], start)

        return jax.lax.fori_loop(0, len(rows), set_row, gradient)

    def together(gradient):
        return gradient.at[image, target, prediction].set(rows)

    return jax.lax.platform_dependent(gradient, cuda=together, rocm=together, default=one_after_another)


def real_targets(classes: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
    """Places (image * T + target) of the real targets first, then B * T as padding; and their number.

    The length is rounded up to a multiple of `step`.
    """
    valid = classes.reshape(-1) >= 0  # (B, T) -> (B * T,)
    length = -(-valid.size // step) * step
    return jnp.nonzero(valid, size=length, fill_value=valid.size)[0], valid.sum()


def pair_losses(
    masks: jax.Array,
    labels: jax.Array,
    pairs: tuple[jax.Array, jax.Array, jax.Array],
    classes: jax.Array,
    points_of_pair: Callable,
    config: ConfigDict,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mask losses of matched pairs at points chosen by importance, with the gradient of their weighted sum.

    Args:
      masks: (N, h, w) logits.
      labels: (B, H, W).
      pairs: numbers of prediction, image and target of each pair, (N,) each.
      classes: (N,), the class of each pair's target.
      points_of_pair: from `point_source`.
      config: `config.loss`.

    Returns:
      Cross-entropy (N,), Dice loss (N,), and the weighted gradient (N, h, w).
    """
    oversampled, uniform = jax.vmap(points_of_pair)(*pairs)  # (N, 3P, 2), (N, P - kept, 2)
    _, kept, _ = importance_counts(config)
    samples = sample_masks(masks, oversampled)  # (N, 3P)
    chosen = most_uncertain(samples, kept)  # (N, kept)
    points = jnp.concatenate(
        [jnp.take_along_axis(oversampled, chosen[..., None], axis=1), uniform], axis=1
    )  # (N, P, 2)
    x = jnp.concatenate([jnp.take_along_axis(samples, chosen, axis=1), sample_masks(masks, uniform)], axis=1)  # (N, P)
    g = sum(weight * (label == classes[:, None]) for label, weight in sample_labels(labels, pairs[1], points))  # (N, P)

    def weighted_sum(x):
        cross_entropy = (jax.nn.softplus(x) - x * g).mean(axis=1)
        probability = jax.nn.sigmoid(x)
        dice = 1 - (2 * (probability * g).sum(axis=1) + 1) / (probability.sum(axis=1) + g.sum(axis=1) + 1)
        total = (config.mask_weight * cross_entropy + config.dice_weight * dice).sum()
        return total, (cross_entropy, dice)

    x_gradient, (cross_entropy, dice) = jax.grad(weighted_sum, has_aux=True)(x)
    (gradient,) = jax.linear_transpose(lambda masks: sample_masks(masks, points), masks)(x_gradient)
    return cross_entropy, dice, gradient


def factor_gradients(
    gradient: jax.Array, embeddings: jax.Array, features: jax.Array, queries: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of mask embeddings (L+1, B, Q, C) and mask features (B, h, w, C), from that of the matched masks.

    A loop over targets, as far as there are any, with all predictions: for each image a product of large matrices.

    Args:
      gradient: (B, T', L+1, h, w), zero in rows of no target.
      embeddings: (L+1, B, Q, C).
      features: (B, h, w, C).
      queries: (L+1, B, T).
    """
    num_queries, chunk = embeddings.shape[2], TARGETS_AT_ONCE
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, gradient.shape[1] - queries.shape[2])), constant_values=-1)
    queries = queries.transpose(1, 2, 0)  # (L+1, B, T') -> (B, T', L+1)
    image, prediction = jnp.arange(len(queries))[:, None, None], jnp.arange(queries.shape[2])

    def add_targets(i, gradients):
        embeddings_gradient, features_gradient = gradients
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)
        own_gradient, own_queries = part(gradient), part(queries)  # (B, t, L+1, h, w), (B, t, L+1)
        own = embeddings[prediction, image, own_queries]  # (B, t, L+1, C)
        features_gradient += jnp.einsum("btlhw,btlc->bhwc", own_gradient, own, precision="highest")
        own = jnp.einsum("btlhw,bhwc->btlc", own_gradient, features, precision="highest")
        place = jnp.where(own_queries >= 0, own_queries, num_queries)  # dropped
        return embeddings_gradient.at[prediction, image, place].set(own, mode="drop"), features_gradient

    num_targets = (queries >= 0).any(axis=2).sum(axis=1).max()
    start = jnp.zeros_like(embeddings), jnp.zeros_like(features)
    return jax.lax.fori_loop(0, -(-num_targets // chunk), add_targets, start)


@jax.custom_vjp
def with_gradient(value: jax.Array, factors: Any, gradients: Any) -> jax.Array:
    """`value` (), whose derivatives with respect to `factors`, a tree of arrays, are known to be `gradients`."""
    del factors, gradients
    return value


def with_gradient_forward(value, factors, gradients):
    del factors
    return value, gradients


def with_gradient_backward(gradients, cotangent):
    return None, jax.tree.map(lambda x: cotangent * x, gradients), None


with_gradient.defvjp(with_gradient_forward, with_gradient_backward)
