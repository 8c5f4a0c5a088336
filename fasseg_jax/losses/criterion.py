"""The training loss: class cross-entropy and the mask losses of `mask_loss.py` (SPEC section 5).

The predictions are treated one after another, each with all images, so that the masks of one alone are in memory.
`segmentation_loss` is for one device or for the images of one device inside `jax.shard_map`;
`sharded_segmentation_loss` wraps it for a batch that is sharded over a mesh.
"""

from collections.abc import Callable
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from fasseg_jax.losses.mask_loss import mask_errors
from fasseg_jax.losses.points import SamplingPoints, draw_loss_points, draw_matching_points, importance_counts
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.predictions import FactoredPredictions

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
      queries: (L+1, B, T) int32, the query that each target was matched with, -1 for padding.
      num_targets: () int32, targets in the global batch.
      non_finite_costs: () int32, matching costs that were NaN or infinite; none in a healthy training.
    """

    total: jax.Array
    class_loss: jax.Array
    mask_loss: jax.Array
    dice_loss: jax.Array
    queries: jax.Array
    num_targets: jax.Array
    non_finite_costs: jax.Array


def segmentation_loss(
    predictions: FactoredPredictions,
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
    masks = mask_errors(predictions, targets, points, points_of_pair, config)

    over_devices = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    num_targets = over_devices((targets.classes >= 0).sum(dtype=jnp.int32))
    errors, weights = class_errors(predictions.class_logits, targets.classes, masks.queries, config.no_object_weight)
    class_loss = over_devices(errors) / over_devices(weights)
    per_target = lambda x: over_devices(x) / jnp.maximum(num_targets, 1)
    return LossTerms(
        total=config.class_weight * class_loss.sum() + per_target(masks.weighted),
        class_loss=jax.lax.stop_gradient(class_loss),
        mask_loss=per_target(masks.cross_entropy),
        dice_loss=per_target(masks.dice),
        queries=masks.queries,
        num_targets=num_targets,
        non_finite_costs=over_devices(masks.non_finite_costs),
    )


def sharded_segmentation_loss(
    mesh: Mesh, axis_name: str | tuple[str, ...], config: ConfigDict
) -> Callable[[FactoredPredictions, Targets, jax.Array | SamplingPoints], LossTerms]:
    """`segmentation_loss(predictions, targets, randomness)` for arrays whose batch is sharded over axes of a mesh.

    For use inside `jax.jit`. Each device matches and samples its own images; what crosses between devices is the sums
    of `LossTerms` alone. The batch must be divisible by the number of devices along `axis_name`.
    """

    def loss(predictions: FactoredPredictions, targets: Targets, randomness: jax.Array | SamplingPoints) -> LossTerms:
        images_first, images_second = PartitionSpec(axis_name), PartitionSpec(None, axis_name)
        of_predictions = FactoredPredictions(images_second, images_second, images_first)
        points = images_second if isinstance(randomness, SamplingPoints) else PartitionSpec()
        of_terms = LossTerms(
            **dict.fromkeys(LossTerms.__dataclass_fields__, PartitionSpec()) | {"queries": images_second}
        )
        of_device = jax.shard_map(
            partial(segmentation_loss, config=config, axis_name=axis_name),
            mesh=mesh,
            in_specs=(of_predictions, images_first, points),
            out_specs=of_terms,
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
