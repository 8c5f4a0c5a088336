"""The training loss: class cross-entropy, and mask losses at points chosen by importance (SPEC section 5).

All L+1 predictions of all images are treated in one call. `segmentation_loss` is for one device or for the images of
one device inside `jax.shard_map`; `sharded_segmentation_loss` wraps it for a batch that is sharded over a mesh.
"""

from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from fasseg_jax.decoder import Predictions
from fasseg_jax.matching import Targets, match
from fasseg_jax.points import (
    SamplingPoints,
    draw_loss_points,
    draw_matching_points,
    importance_counts,
    most_uncertain,
    sample_labels,
    sample_masks,
)

__all__ = ["LossTerms", "segmentation_loss", "sharded_segmentation_loss"]

AxisName = str | tuple[str, ...] | None


@flax.struct.dataclass
class LossTerms:
    """The loss over the global batch. Only `total` carries a gradient; the rest is for the log.

    Attributes:
      total: () weighted sum of the three losses over the L+1 predictions.
      class_loss: (L+1,) cross-entropy, before its weight as the next two.
      mask_loss: (L+1,) binary cross-entropy of the matched masks.
      dice_loss: (L+1,) Dice loss of the matched masks.
      num_targets: () int32, targets in the global batch.
      non_finite_costs: () int32, matching costs that were NaN or infinite; none in a healthy training.
    """

    total: jax.Array
    class_loss: jax.Array
    mask_loss: jax.Array
    dice_loss: jax.Array
    num_targets: jax.Array
    non_finite_costs: jax.Array


def segmentation_loss(
    predictions: Predictions,
    targets: Targets,
    randomness: jax.Array | SamplingPoints,
    config: ConfigDict,
    axis_name: AxisName = None,
) -> LossTerms:
    """The loss of all predictions.

    Args:
      predictions: with leading axis L+1.
      targets: `Targets` of the same images.
      randomness: a key, the same on every device; or the points themselves. The points of a pair depend on the key and
        on the numbers of prediction, image in the global batch and target alone, not on how many devices there are.
      config: `config.loss`.
      axis_name: inside `jax.shard_map`, the mesh axes that the batch is sharded over.

    Raises:
      ValueError: more targets (T) than queries, or points of another number than `config` says.
    """
    predictions, targets, randomness = jax.tree.map(jnp.asarray, (predictions, targets, randomness))
    num_images, num_queries = predictions.class_logits.shape[1:3]
    if targets.classes.shape[1] > num_queries:
        raise ValueError(f"max_targets is {targets.classes.shape[1]}, but the model has only {num_queries} queries")
    first_image = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_images
    points, points_of_pair = point_source(randomness, config, predictions.class_logits.shape[:2], first_image)
    queries, non_finite_costs = match(predictions, targets, points, config)

    over_devices = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    num_targets = over_devices((targets.classes >= 0).sum(dtype=jnp.int32))
    errors, weights = class_errors(predictions.class_logits, targets.classes, queries, config.no_object_weight)
    class_loss = over_devices(errors) / over_devices(weights)
    mask_sum, dice_sum, weighted = mask_errors(predictions.mask_logits, targets, queries, points_of_pair, config)
    per_target = lambda x: over_devices(x) / jnp.maximum(num_targets, 1)
    total = config.class_weight * class_loss + per_target(weighted)
    return LossTerms(
        total=total.sum(),
        class_loss=jax.lax.stop_gradient(class_loss),
        mask_loss=per_target(mask_sum),
        dice_loss=per_target(dice_sum),
        num_targets=num_targets,
        non_finite_costs=over_devices(non_finite_costs),
    )


def sharded_segmentation_loss(
    mesh: Mesh, axis_name: str | tuple[str, ...], config: ConfigDict
) -> Callable[[Predictions, Targets, jax.Array | SamplingPoints], LossTerms]:
    """`segmentation_loss(predictions, targets, randomness)` for arrays whose batch is sharded over axes of a mesh.

    For use inside `jax.jit`. Each device matches and samples its own images; what crosses between devices is the sums
    of `LossTerms` alone. The batch must be divisible by the number of devices along `axis_name`.
    """

    def loss(predictions: Predictions, targets: Targets, randomness: jax.Array | SamplingPoints) -> LossTerms:
        images_first, images_second = PartitionSpec(axis_name), PartitionSpec(None, axis_name)
        points = images_second if isinstance(randomness, SamplingPoints) else PartitionSpec()
        of_device = jax.shard_map(
            partial(segmentation_loss, config=config, axis_name=axis_name),
            mesh=mesh,
            in_specs=(images_second, images_first, points),
            out_specs=PartitionSpec(),
            check_vma=False,  # the loops start from constants, which the check takes for equal on all devices
        )
        return of_device(predictions, targets, randomness)

    return loss


def point_source(randomness, config: ConfigDict, shape: tuple[int, int], first_image):
    """The matching points (L+1, B, P, 2), and a function (prediction, image, target) -> two sets of points of a pair.

    `shape` is (L+1, B); images are numbered within the batch of this device, whose first is `first_image` of all.
    """
    num_oversampled, _, num_uniform = importance_counts(config)
    if isinstance(randomness, SamplingPoints):
        given = tuple(x.shape[-2] for x in (randomness.matching, randomness.oversampled, randomness.uniform))
        if given != (config.num_points, num_oversampled, num_uniform):
            raise ValueError(
                f"SamplingPoints has {given} points for matching, oversampled and uniform; "
                f"config.loss wants {(config.num_points, num_oversampled, num_uniform)}"
            )
        of_pair = lambda *pair: (randomness.oversampled[pair], randomness.uniform[pair])
        return randomness.matching, of_pair

    matching_key, loss_key = jax.random.split(randomness)

    def of_image(prediction, image):
        return draw_matching_points(matching_key, prediction, first_image + image, config.num_points)

    def of_pair(prediction, image, target):
        counts = num_oversampled, num_uniform
        return draw_loss_points(loss_key, prediction, first_image + image, target, counts)

    of_images = jax.vmap(jax.vmap(of_image, in_axes=(None, 0)), in_axes=(0, None))
    return of_images(jnp.arange(shape[0]), jnp.arange(shape[1])), of_pair


def class_errors(
    class_logits: jax.Array, classes: jax.Array, queries: jax.Array, no_object_weight: float
) -> tuple[jax.Array, jax.Array]:
    """Sums over queries and images (L+1,) of weight * cross-entropy and of the weights.

    Matched queries are to predict the class of their target, all others "no object", the last class.
    """
    no_object = class_logits.shape[-1] - 1
    num_queries = class_logits.shape[2]

    def labels_of(queries, classes):  # (T,), (T,) -> (Q,)
        labels = jnp.full(num_queries, no_object, jnp.int32)
        return labels.at[jnp.where(queries >= 0, queries, num_queries)].set(classes, mode="drop")

    labels = jax.vmap(jax.vmap(labels_of), in_axes=(0, None))(queries, classes)  # (L+1, B, Q)
    log_probabilities = jax.nn.log_softmax(class_logits)
    errors = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    weights = jnp.where(labels == no_object, no_object_weight, 1.0)
    return (weights * errors).sum(axis=(1, 2)), weights.sum(axis=(1, 2))


def mask_errors(
    mask_logits: jax.Array, targets: Targets, queries: jax.Array, points_of_pair: Callable, config: ConfigDict
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the matched pairs (L+1,) of cross-entropy, of Dice loss, and of both with their weights.

    A loop over the real targets, whose number the program learns only as it runs, a few at a time with all their
    predictions. It finds the gradient together with the loss, as such a loop cannot be run backwards; the last of the
    three sums carries it.
    """
    num_predictions, num_images, num_queries = mask_logits.shape[:3]
    max_targets, step = targets.classes.shape[1], targets_at_once()
    logits = jax.lax.stop_gradient(mask_logits)
    places, num_targets = real_targets(targets.classes, step)
    loss = partial(pair_losses, points_of_pair=points_of_pair, config=config)

    def add_targets(i, state):
        sums, gradient = state
        place = jax.lax.dynamic_slice_in_dim(places, i * step, step)  # (step,)
        real = place < num_images * max_targets
        image, target = jnp.where(real, place // max_targets, 0), place % max_targets
        # All pairs of these targets, prediction by prediction: N = (L+1) * step.
        prediction = jnp.repeat(jnp.arange(num_predictions), step)  # (N,)
        real, image, target = (jnp.tile(x, num_predictions) for x in (real, image, target))
        query = queries[prediction, image, target]
        cross_entropy, dice, pair_gradient = loss(
            logits[prediction, image, query],
            targets.labels,
            (prediction, image, target),
            targets.classes[image, target],
        )
        by_prediction = lambda x: jnp.where(real, x, 0).reshape(num_predictions, step).sum(axis=1)
        sums = sums[0] + by_prediction(cross_entropy), sums[1] + by_prediction(dice)
        query = jnp.where(real, query, num_queries)  # dropped
        return sums, gradient.at[prediction, image, query].set(pair_gradient, mode="drop")

    start = ((jnp.zeros(num_predictions), jnp.zeros(num_predictions)), jnp.zeros_like(logits))
    num_steps = -(-num_targets // step)
    (cross_entropy, dice), gradient = jax.lax.fori_loop(0, num_steps, add_targets, start)
    weighted = config.mask_weight * cross_entropy + config.dice_weight * dice
    return cross_entropy, dice, with_gradient(weighted, mask_logits, gradient)


def targets_at_once() -> int:
    """Targets handled in one turn of the loop over them, with all their predictions.

    A GPU wants few, large turns, as each is many small programs; a CPU is fastest with what fits its cache.
    """
    return 16 if jax.default_backend() == "gpu" else 1


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
    # (N, 3P, 2), (N, P - kept, 2). Behind a barrier, as XLA would draw them anew in each place that they are used.
    oversampled, uniform = jax.lax.optimization_barrier(jax.vmap(points_of_pair)(*pairs))
    _, kept, _ = importance_counts(config)
    chosen = most_uncertain(sample_masks(masks, oversampled), kept)  # (N, kept)
    chosen = jnp.take_along_axis(oversampled, chosen[..., None], axis=1)
    points = jnp.concatenate([chosen, uniform], axis=1)  # (N, P, 2)

    g = sum(weight * (label == classes[:, None]) for label, weight in sample_labels(labels, pairs[1], points))  # (N, P)

    def weighted_sum(masks):
        x = sample_masks(masks, points)  # (N, P)
        cross_entropy = (jax.nn.softplus(x) - x * g).mean(axis=1)
        probability = jax.nn.sigmoid(x)
        dice = 1 - (2 * (probability * g).sum(axis=1) + 1) / (probability.sum(axis=1) + g.sum(axis=1) + 1)
        total = (config.mask_weight * cross_entropy + config.dice_weight * dice).sum()
        return total, (cross_entropy, dice)

    gradient, (cross_entropy, dice) = jax.grad(weighted_sum, has_aux=True)(masks)
    return cross_entropy, dice, gradient


@jax.custom_vjp
def with_gradient(value: jax.Array, logits: jax.Array, gradient: jax.Array) -> jax.Array:
    """`value` (L+1,), whose derivative with respect to `logits` (L+1, ...) is known to be `gradient`."""
    del logits, gradient
    return value


def with_gradient_forward(value, logits, gradient):
    del logits
    return value, gradient


def with_gradient_backward(gradient, cotangent):
    return None, cotangent.reshape(-1, *[1] * (gradient.ndim - 1)) * gradient, None


with_gradient.defvjp(with_gradient_forward, with_gradient_backward)
