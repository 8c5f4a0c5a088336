"""Matching and loss as docs/specification.md, section 5, states them: one pair, one formula, one loop at a time.

`criterion.segmentation_loss` computes the same, in a program of fixed shapes that fits a device. Read this file to
learn what is computed; the tests compare the two. The choices of queries and of points carry no gradient, so here they
come before the loss:

    queries = match_all(predictions, targets, points.matching, config)
    chosen = choose_points(predictions, queries, points, config)
    loss, gradient = jax.value_and_grad(segmentation_loss)(predictions, targets, queries, chosen, config)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment  # JAX itself needs SciPy

from fasseg_jax.losses.points import SamplingPoints, point_counts
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.predictions import FactoredPredictions, mask_product
from fasseg_jax.ops.reference import sample_masks

__all__ = ["choose_points", "mask_losses", "match", "match_all", "sample", "segmentation_loss"]

AnyArray = Array | np.ndarray


def sample(image: Float[AnyArray, "h w"], points: Float[AnyArray, "P 2"]) -> Float[Array, "P"]:
    """Bilinear samples of one mask at xy in [0, 1], zero outside."""
    return sample_masks(jnp.asarray(image)[None], jnp.asarray(points)[None])[0]


@jax.jit
def mask_losses(
    mask_logits: Float[AnyArray, "h w"], truth: Float[AnyArray, "H W"], points: Float[AnyArray, "P 2"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy and Dice loss of a query's mask and a target's, compared at points."""
    x, g = sample(mask_logits, points), sample(truth, points)
    cross_entropy = -(g * jax.nn.log_sigmoid(x) + (1 - g) * jax.nn.log_sigmoid(-x)).mean()
    p = jax.nn.sigmoid(x)
    dice = 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
    return cross_entropy, dice


def matching_cost(
    class_logits: Float[AnyArray, "K1"],
    mask_logits: Float[AnyArray, "h w"],
    label: int,
    truth: Float[AnyArray, "H W"],
    points: Float[AnyArray, "P 2"],
    config: ConfigDict,
) -> Float[Array, ""]:
    """What it costs to match a query with a target of class `label`."""
    class_cost = -np.exp(class_logits[label]) / np.exp(class_logits).sum()
    mask_cost, dice_cost = mask_losses(mask_logits, truth, points)
    return config.class_weight * class_cost + config.mask_weight * mask_cost + config.dice_weight * dice_cost


def match(
    class_logits: Float[AnyArray, "Q K1"],
    mask_logits: Float[AnyArray, "Q h w"],
    labels: Integer[AnyArray, "H W"],
    classes: Int[AnyArray, "T"],
    points: Float[AnyArray, "P 2"],
    config: ConfigDict,
) -> Int[np.ndarray, "T"]:
    """The query of each target of one image, of which none is padding: the assignment of least total cost."""
    cost = np.zeros((len(mask_logits), len(classes)))
    for query, target in np.ndindex(cost.shape):
        label = int(classes[target])
        truth = (labels == label).astype(np.float32)
        cost[query, target] = matching_cost(class_logits[query], mask_logits[query], label, truth, points, config)
    query, target = linear_sum_assignment(cost)
    return query[np.argsort(target)]


def match_all(
    predictions: FactoredPredictions, targets: Targets, points: Float[AnyArray, "L1 B P 2"], config: ConfigDict
) -> Int[np.ndarray, "L1 B T"]:
    """The query of each target by each prediction, -1 for padding."""
    mask_logits = _mask_logits(predictions)
    queries = np.full((len(points), *targets.classes.shape), -1)
    for prediction, image in np.ndindex(queries.shape[:2]):
        valid = targets.valid[image]
        queries[prediction, image, valid] = match(
            predictions.class_logits[prediction, image],
            mask_logits[prediction, image],
            targets.labels[image],
            targets.classes[image, valid],
            points[prediction, image],
            config,
        )
    return queries


def choose_points(
    predictions: FactoredPredictions, queries: Int[np.ndarray, "L1 B T"], points: SamplingPoints, config: ConfigDict
) -> Float[np.ndarray, "L1 B T P 2"]:
    """The points of each pair: the oversampled ones where the logit is nearest to zero, and the uniform ones."""
    mask_logits = _mask_logits(predictions)
    important = point_counts(config).important
    chosen = np.zeros((*queries.shape, config.num_points, 2), np.float32)
    for pair in zip(*np.nonzero(queries >= 0), strict=True):
        prediction, image, _ = pair
        logits = sample(mask_logits[prediction, image, queries[pair]], points.oversampled[pair])
        order = np.argsort(np.abs(np.asarray(logits)))
        chosen[pair] = np.concatenate([points.oversampled[pair][order[:important]], points.uniform[pair]])
    return chosen


def segmentation_loss(
    predictions: FactoredPredictions,
    targets: Targets,
    queries: Int[np.ndarray, "L1 B T"],
    points: Float[np.ndarray, "L1 B T P 2"],
    config: ConfigDict,
) -> Float[Array, ""]:
    """The loss of all predictions, for the given matches and points."""
    mask_logits = _mask_logits(predictions)
    num_queries, no_object = predictions.class_logits.shape[2], predictions.class_logits.shape[3] - 1
    num_targets = max(1, targets.valid.sum())
    total = jnp.zeros(())
    for prediction in range(len(queries)):
        cross_entropy_sum = weight_sum = jnp.zeros(())
        for image, matched in enumerate(queries[prediction]):
            wanted = np.full(num_queries, no_object)  # the class that each query should predict
            for target in np.flatnonzero(matched >= 0):
                query, label = matched[target], targets.classes[image, target]
                wanted[query] = label
                truth = (targets.labels[image] == label).astype(np.float32)
                cross_entropy, dice = mask_losses(
                    mask_logits[prediction, image, query], truth, points[prediction, image, target]
                )
                total += (config.mask_weight * cross_entropy + config.dice_weight * dice) / num_targets
            class_weights = config.class_weights or np.ones(no_object)
            weights = np.array([*class_weights, config.no_object_weight])[wanted]
            log_probabilities = jax.nn.log_softmax(predictions.class_logits[prediction, image])
            cross_entropy_sum -= (weights * log_probabilities[np.arange(num_queries), wanted]).sum()
            weight_sum += weights.sum()
        total += config.class_weight * cross_entropy_sum / weight_sum
    return total


def _mask_logits(predictions: FactoredPredictions) -> Float[Array, "L1 B Q h w"]:
    return mask_product(jnp.asarray(predictions.mask_embeddings), jnp.asarray(predictions.mask_features))
