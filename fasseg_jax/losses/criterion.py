"""The training loss: class cross-entropy plus the mask losses of `mask_loss.py` (docs/specification.md, section 5).

Computes the same as `reference.segmentation_loss`; `mask_loss.py` and `matcher.py` say how they differ from it.
`segmentation_loss` works on one device, or on one device's images inside `jax.shard_map`. `sharded_segmentation_loss`
wraps it for a batch that is sharded over a mesh.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32
from ml_collections import ConfigDict

from fasseg_jax.losses.mask_loss import mask_losses
from fasseg_jax.losses.points import Randomness, SamplingPoints, SharedPoints, pair_points, shared_points
from fasseg_jax.losses.shared_mask_loss import shared_mask_losses
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.predictions import FactoredPredictions

__all__ = ["LossTerms", "segmentation_loss", "sharded_segmentation_loss"]

AxisName = str | tuple[str, ...]


@flax.struct.dataclass
class LossTerms:
    """The loss over the global batch. Only `total` carries a gradient; the rest is for the log.

    Attributes:
      total: weighted sum of the three losses over all predictions.
      class_loss: cross-entropy of each prediction, without its weight.
      mask_loss: binary cross-entropy of the matched masks, without its weight.
      dice_loss: Dice loss of the matched masks, without its weight.
      queries: the query matched with each target, -1 for padding.
      num_targets: targets in the global batch.
      non_finite_costs: matching costs that were NaN or infinite; none in a healthy training.
    """

    total: Float[Array, ""]
    class_loss: Float[Array, "L1"]
    mask_loss: Float[Array, "L1"]
    dice_loss: Float[Array, "L1"]
    queries: Int32[Array, "L1 B T"]
    num_targets: Int32[Array, ""]
    non_finite_costs: Int32[Array, ""]


def segmentation_loss(
    predictions: FactoredPredictions,
    targets: Targets,
    randomness: Randomness,
    config: ConfigDict,
    axis_name: AxisName | None = None,
) -> LossTerms:
    """The loss of all predictions.

    Args:
      predictions: of this device's images.
      targets: of the same images.
      randomness: a key, the same on every device; or the points themselves, `SharedPoints` if these are shared and else
        `SamplingPoints`. The points of a pair depend only on the key and on the numbers of prediction, image in the
        global batch and target, not on how many devices there are.
      config: `config.loss`.
      axis_name: inside `jax.shard_map`, the mesh axes that the batch is sharded over.

    Raises:
      ValueError: there are more targets than queries, or the points of `randomness` are not those that `config` says.
    """
    predictions, targets, randomness = jax.tree.map(jnp.asarray, (predictions, targets, randomness))
    num_predictions, num_images, num_queries = predictions.class_logits.shape[:3]
    if targets.classes.shape[1] > num_queries:
        raise ValueError(f"max_targets is {targets.classes.shape[1]}, but the model has only {num_queries} queries")
    first_image = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_images

    def over_devices(x):
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def per_target(x):
        return over_devices(x) / jnp.maximum(num_targets, 1)

    if config.shared_points:
        points = shared_points(randomness, config, num_images, first_image)
        masks = shared_mask_losses(predictions, targets, points, config)
    else:
        of_matching, of_pair = pair_points(randomness, config, num_predictions, num_images, first_image)
        masks = mask_losses(predictions, targets, of_matching, of_pair, config)
    num_targets = over_devices(targets.valid.sum(dtype=jnp.int32))
    class_sum, weight_sum = class_losses(
        predictions.class_logits, targets.classes, masks.queries, config.no_object_weight, config.class_weights
    )
    class_loss = over_devices(class_sum) / over_devices(weight_sum)
    return LossTerms(
        total=config.class_weight * class_loss.sum() + per_target(masks.weighted),
        class_loss=jax.lax.stop_gradient(class_loss),
        mask_loss=per_target(masks.cross_entropy),
        dice_loss=per_target(masks.dice),
        queries=masks.queries,
        num_targets=num_targets,
        non_finite_costs=over_devices(masks.non_finite_costs),
    )


def class_losses(
    class_logits: Float[Array, "L1 B Q K1"],
    classes: Int32[Array, "B T"],
    queries: Int32[Array, "L1 B T"],
    no_object_weight: float,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, "L1"], Float[Array, "L1"]]:
    """Sums over queries and images of weight * cross-entropy, and of the weights.

    A matched query should predict the class of its target, every other query "no object", the last class. Without
    `class_weights`, the weight of every class is 1.
    """
    no_object = class_logits.shape[-1] - 1
    num_queries = class_logits.shape[2]

    def labels_of(queries, classes):  # (T,), (T,) -> (Q,)
        labels = jnp.full(num_queries, no_object, jnp.int32)
        return labels.at[jnp.where(queries >= 0, queries, num_queries)].set(classes, mode="drop")

    labels = jax.vmap(jax.vmap(labels_of), in_axes=(0, None))(queries, classes)  # (L1, B, Q)
    log_probabilities = jax.nn.log_softmax(class_logits)
    cross_entropy = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    if class_weights:
        weights = jnp.array([*class_weights, no_object_weight], jnp.float32)[labels]
    else:
        weights = jnp.where(labels == no_object, no_object_weight, 1.0)
    return (weights * cross_entropy).sum(axis=(1, 2)), weights.sum(axis=(1, 2))


def sharded_segmentation_loss(
    mesh: Mesh, axis_name: AxisName, config: ConfigDict
) -> Callable[[FactoredPredictions, Targets, Randomness], LossTerms]:
    """`segmentation_loss(predictions, targets, randomness)` for arrays whose batch is sharded over axes of a mesh.

    For use inside `jax.jit`. Each device matches and samples its own images; only the sums of `LossTerms` cross between
    devices. The batch must be divisible by the number of devices along `axis_name`.
    """
    batch_first, batch_second = PartitionSpec(axis_name), PartitionSpec(None, axis_name)
    prediction_specs = _specs(FactoredPredictions, default=batch_second, mask_features=batch_first)
    term_specs = _specs(LossTerms, default=PartitionSpec(), queries=batch_second)

    def loss(predictions: FactoredPredictions, targets: Targets, randomness: Randomness) -> LossTerms:
        points = {SamplingPoints: batch_second, SharedPoints: batch_first}.get(type(randomness), PartitionSpec())
        loss_of_device = jax.shard_map(
            partial(segmentation_loss, config=config, axis_name=axis_name),
            mesh=mesh,
            in_specs=(prediction_specs, batch_first, points),
            out_specs=term_specs,
            check_vma=False,  # the loops start from constants, and the check holds these to be equal on all devices
        )
        return loss_of_device(predictions, targets, randomness)

    return loss


def _specs(tree: Any, default: PartitionSpec, **others: PartitionSpec) -> Any:
    """A data class of arrays, with a `PartitionSpec` for each field."""
    return tree(**{field.name: others.get(field.name, default) for field in dataclasses.fields(tree)})
