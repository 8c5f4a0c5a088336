"""Mask losses of matched pairs, and their gradient (docs/specification.md, section 5).

Computes the sums of `reference.mask_losses` over all pairs, with their derivative. The differences:

- Only the masks of one prediction are in memory at a time.
- The loops run over the real targets, whose number is known only at run time. JAX cannot differentiate such a loop.
  So the gradient is computed together with the loss: for each pair with respect to its mask logits, then for all pairs
  with respect to embeddings and features, in a few large matmuls. `with_gradient` hands the result to JAX.
- A target's mask is sampled from the label map, without being formed.
- For a network in bfloat16, a TPU chooses the points by rounded samples, and rounds the gradients of mask logits.

The choice of points is that of Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32
from ml_collections import ConfigDict

from fasseg_jax.losses.mask_terms import MaskLosses, losses_at_points, with_gradient
from fasseg_jax.losses.matcher import match, matching_costs
from fasseg_jax.losses.points import PairPoints, point_counts
from fasseg_jax.losses.targets import Targets, loop_over_targets
from fasseg_jax.models.predictions import FactoredPredictions, mask_precision
from fasseg_jax.ops.point_sampling import (
    PackedLabels,
    pack_labels,
    sample_class_masks,
    sample_labels,
    sample_masks,
    sample_masks_at_shared_points,
    sample_masks_roughly,
    spread_on_masks,
)
from fasseg_jax.ops.selection import compact, most_uncertain

__all__ = ["mask_losses"]

# Pairs in one turn of the loop over them. A CPU is fastest with what fits its cache. A GPU wants few, large turns: each
# is many small kernels, and before each the host waits until the GPU says whether there are more.
PAIRS_AT_ONCE = {"tpu": 16, "default": 4}
PAIRS_OF_AN_IMAGE_AT_ONCE = 16  # on a GPU
TARGETS_AT_ONCE = 8  # of each image, with all predictions, in the matmuls of `factor_gradients`


def mask_losses(
    predictions: FactoredPredictions,
    targets: Targets,
    matching_points: Float[Array, "L1 B P 2"],
    pair_points: PairPoints,
    config: ConfigDict,
) -> MaskLosses:
    """Match queries with targets, and compare the masks of each pair. `config` is `config.loss`."""
    class_logits, embeddings, features = jax.lax.stop_gradient(
        (predictions.class_logits, predictions.mask_embeddings, predictions.mask_features)
    )
    num_predictions, num_images = embeddings.shape[:2]
    max_targets = targets.classes.shape[1]

    labels, precision = pack_labels(targets.labels), mask_precision(embeddings)
    on_gpu = num_images * min(max_targets, PAIRS_OF_AN_IMAGE_AT_ONCE)
    pairs_at_once = PAIRS_AT_ONCE | {"cuda": on_gpu, "rocm": on_gpu}

    def costs_of(inputs):
        class_logits, embeddings, points = inputs
        # Queries last, so that the values of all masks at a pixel lie together.
        masks = jnp.einsum("bqc,bhwc->bhwq", embeddings, features, precision=precision)
        mask_logits = jax.vmap(sample_masks_at_shared_points)(masks, points)
        labels_and_weights = sample_labels(labels, jnp.arange(num_images), points)
        return matching_costs(class_logits, mask_logits, targets, labels_and_weights, config, precision)

    costs = jax.lax.map(costs_of, (class_logits, embeddings, matching_points))
    queries, non_finite = match(costs, targets)

    def add_prediction(grad_masks, inputs):
        prediction, embeddings, queries = inputs
        matched = jnp.take_along_axis(embeddings, jnp.maximum(queries, 0)[..., None], axis=1)  # (B, T, C)
        # Computed for all targets, pixels first: other orders take several times as long on a CPU.
        mask_logits = jnp.einsum("btc,bhwc->bhwt", matched, features, precision=precision).transpose(0, 3, 1, 2)
        add_pairs_on = {
            name: partial(add_pairs, pair_points, config, precision, n) for name, n in pairs_at_once.items()
        }
        cross_entropy, dice, grad_masks = jax.lax.platform_dependent(
            grad_masks, prediction, mask_logits, targets, labels, **add_pairs_on
        )
        return grad_masks, (cross_entropy, dice)

    # The gradient of the mask of each target's query, (B, rows, L1, h, w): a multiple of TARGETS_AT_ONCE rows, at least
    # one more than there are targets. Row T takes what belongs to no target.
    rows = (max_targets // TARGETS_AT_ONCE + 1) * TARGETS_AT_ONCE
    grad_masks = jnp.zeros((num_images, rows, num_predictions, *features.shape[1:3]))
    inputs = jnp.arange(num_predictions), embeddings, queries
    grad_masks, (cross_entropy, dice) = jax.lax.scan(add_prediction, grad_masks, inputs)

    weighted = (config.mask_weight * cross_entropy + config.dice_weight * dice).sum()
    factors = predictions.mask_embeddings.astype(jnp.float32), predictions.mask_features
    gradients = factor_gradients(grad_masks, embeddings, features, queries)
    return MaskLosses(queries, non_finite, cross_entropy, dice, with_gradient(weighted, factors, gradients))


def add_pairs(
    pair_points: PairPoints,
    config: ConfigDict,
    precision: str,
    pairs_at_once: int,
    grad_masks: Float[Array, "B rows L1 h w"],
    prediction: Int[Array, ""],
    mask_logits: Float[Array, "B T h w"],
    targets: Targets,
    labels: PackedLabels,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "B rows L1 h w"]]:
    """Sum up cross-entropy and Dice loss of the pairs of one prediction, and write their gradients to `grad_masks`.

    `mask_logits` are those of each target's query.
    """
    num_images, max_targets = mask_logits.shape[:2]
    targets_in_order = _valid_first(targets, pairs_at_once)

    def add_chunk(first, state):
        cross_entropy_sum, dice_sum, grad_masks = state
        index = jax.lax.dynamic_slice_in_dim(targets_in_order, first, pairs_at_once)  # (N,)
        valid = index < num_images * max_targets
        image, target = jnp.where(valid, index // max_targets, 0), index % max_targets
        oversampled, uniform = jax.vmap(pair_points)(jnp.full(pairs_at_once, prediction), image, target)
        cross_entropy, dice, gradient = pair_losses(
            mask_logits[image, target],
            labels,
            image,
            targets.classes[image, target],
            oversampled,
            uniform,
            config,
            precision,
        )
        row = jnp.where(valid, target, max_targets)
        gradient = jnp.where(valid[:, None, None], gradient, 0)
        return (
            cross_entropy_sum + jnp.where(valid, cross_entropy, 0).sum(),
            dice_sum + jnp.where(valid, dice, 0).sum(),
            set_rows(grad_masks, gradient, image, row, prediction),
        )

    start = jnp.zeros(()), jnp.zeros(()), grad_masks
    return loop_over_targets(targets.valid.sum(), pairs_at_once, add_chunk, start)


def _valid_first(targets: Targets, multiple: int) -> jax.Array:
    """Indices image * T + target of the valid targets, then B * T as padding to a multiple of `multiple`."""
    valid = targets.valid.reshape(-1)  # (B, T) -> (B * T,)
    length = valid.size + -valid.size % multiple
    return jnp.nonzero(valid, size=length, fill_value=valid.size)[0]


def set_rows(
    grad_masks: Float[Array, "B rows L1 h w"],
    gradient: Float[Array, "N h w"],
    image: Int[Array, "N"],
    row: Int[Array, "N"],
    prediction: Int[Array, ""],
) -> Float[Array, "B rows L1 h w"]:
    """`grad_masks` with `gradient` at the given indices."""

    def one_by_one(grad_masks):
        def set_row(j, grad_masks):  # copies a whole map at once, which a scatter on a CPU or TPU does not
            start = image[j], row[j], prediction, 0, 0
            return jax.lax.dynamic_update_slice(grad_masks, gradient[j][None, None, None], start)

        return jax.lax.fori_loop(0, len(gradient), set_row, grad_masks)

    def by_scatter(grad_masks):
        return grad_masks.at[image, row, prediction].set(gradient)

    return jax.lax.platform_dependent(grad_masks, cuda=by_scatter, rocm=by_scatter, default=one_by_one)


def pair_losses(
    masks: Float[Array, "N h w"],
    labels: PackedLabels,
    image: Int[Array, "N"],
    classes: Int32[Array, "N"],
    oversampled: Float[Array, "N oversampled 2"],
    uniform: Float[Array, "N uniform 2"],
    config: ConfigDict,
    precision: str,
) -> tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N h w"]]:
    """Compare the masks of matched pairs at the most uncertain of the oversampled points and at the uniform ones.

    Args:
      masks: mask logits of the pairs' queries.
      labels: the ground truth of all images.
      image: the pairs' images.
      classes: the classes of the pairs' targets.
      oversampled: points of each pair.
      uniform: points of each pair.
      config: `config.loss`.
      precision: of the choice of points and of the gradient on a TPU, see `uncertain_samples`.

    Returns:
      Cross-entropy, Dice loss, and the gradient of their weighted sum with respect to `masks`.
    """
    important_logits, x, y = uncertain_samples(masks, oversampled, point_counts(config).important, precision)
    xy = [jnp.concatenate([x, uniform[..., 0]], axis=1), jnp.concatenate([y, uniform[..., 1]], axis=1)]
    points = jnp.stack(xy, axis=-1)  # (N, P, 2)
    logits = jnp.concatenate([important_logits, sample_masks(masks, uniform)], axis=1)  # (N, P)
    truth = sample_class_masks(labels, image, classes, points)  # (N, P)

    def weighted_sum(logits):
        cross_entropy, dice = losses_at_points(logits, truth, config.num_points)
        return (config.mask_weight * cross_entropy + config.dice_weight * dice).sum(), (cross_entropy, dice)

    grad_logits, (cross_entropy, dice) = jax.grad(weighted_sum, has_aux=True)(logits)
    _, h, w = masks.shape
    return cross_entropy, dice, spread_on_masks(grad_logits, points, (h, w), precision)


def uncertain_samples(
    masks: Float[Array, "N h w"], points: Float[Array, "N oversampled 2"], count: int, precision: str
) -> list[Float[Array, "N {count}"]]:
    """Logits, x and y of the `count` most uncertain points of each mask, in the points' order.

    With a `precision` below "highest", which stands for masks that are rounded anyway (`mask_precision`), a TPU chooses
    by rounded samples, one product of bfloat16 in place of three. It samples what it has chosen again.
    """

    def sampled_once(masks, points):
        logits = sample_masks(masks, points)
        return compact(most_uncertain(logits, count), (logits, points[..., 0], points[..., 1]), count)

    on_tpu = sampled_once if precision == "highest" else partial(chosen_roughly, count=count)
    return jax.lax.platform_dependent(masks, points, tpu=on_tpu, default=sampled_once)


def chosen_roughly(masks: jax.Array, points: jax.Array, count: int) -> list[jax.Array]:
    """`uncertain_samples`, where a point may be missed that is as uncertain as another up to 2^-7 of its pixels."""
    chosen = most_uncertain(sample_masks_roughly(masks, points), count)
    x, y = compact(chosen, (points[..., 0], points[..., 1]), count)
    return [sample_masks(masks, jnp.stack([x, y], axis=-1)), x, y]


def factor_gradients(
    grad_masks: Float[Array, "B rows L1 h w"],
    embeddings: Float[Array, "L1 B Q C"],
    features: Float[Array, "B h w C"],
    queries: Int32[Array, "L1 B T"],
) -> tuple[Float[Array, "L1 B Q C"], Float[Array, "B h w C"]]:
    """Gradients of mask embeddings and mask features, from those of the matched masks.

    The loop over targets takes all predictions at once: for each image, matmuls of large matrices. `grad_masks` is zero
    in rows of no target.
    """
    num_queries, padding = embeddings.shape[2], grad_masks.shape[1] - queries.shape[2]
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, padding)), constant_values=-1)
    queries = queries.transpose(1, 2, 0)  # (L1, B, rows) -> (B, rows, L1)
    image = jnp.arange(len(queries))[:, None, None]
    prediction = jnp.arange(queries.shape[2])
    einsum = partial(jnp.einsum, precision=mask_precision(embeddings))

    def add_targets(first, gradients):
        grad_embeddings, grad_features = gradients
        grad = jax.lax.dynamic_slice_in_dim(grad_masks, first, TARGETS_AT_ONCE, axis=1)  # (B, t, L1, h, w)
        query = jax.lax.dynamic_slice_in_dim(queries, first, TARGETS_AT_ONCE, axis=1)  # (B, t, L1)
        matched = embeddings[prediction, image, query]  # (B, t, L1, C)
        grad_features += einsum("btlhw,btlc->bhwc", grad, matched)
        grad_matched = einsum("btlhw,bhwc->btlc", grad, features)
        index = jnp.where(query >= 0, query, num_queries)  # the scatter drops what belongs to no query
        return grad_embeddings.at[prediction, image, index].set(grad_matched, mode="drop"), grad_features

    most = (queries >= 0).any(axis=2).sum(axis=1).max()
    start = jnp.zeros(embeddings.shape), jnp.zeros_like(features)
    return loop_over_targets(most, TARGETS_AT_ONCE, add_targets, start)
