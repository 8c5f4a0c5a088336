"""Matching and loss, compared with recorded numbers of the official program and with the plain version."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from ml_collections import ConfigDict

from fasseg_jax.config import load_config
from fasseg_jax.losses import mask_loss, matcher, reference
from fasseg_jax.losses.criterion import LossTerms, class_losses, segmentation_loss
from fasseg_jax.losses.mask_loss import chosen_roughly
from fasseg_jax.losses.matcher import SampledMasks, match, matching_costs
from fasseg_jax.losses.points import (
    PointCounts,
    SamplingPoints,
    SharedPoints,
    draw_loss_points,
    draw_matching_points,
    shared_points,
)
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.predictions import FactoredPredictions
from fasseg_jax.ops.point_sampling import pack_labels, sample_labels, sample_masks, sample_masks_at_shared_points
from tests.helpers import GOLDEN, ROOT, xla_flags


def loss_config(num_points: int) -> ConfigDict:
    config = load_config("configs/ade20k.py:r50").loss
    config.num_points = num_points
    return config


def predictions_of(class_logits, mask_logits) -> FactoredPredictions:
    """Predictions of the given masks (L1, B, Q, h, w): the embeddings are the masks, and each pixel has a feature."""
    h, w = mask_logits.shape[-2:]
    features = np.eye(h * w, dtype=np.float32).reshape(1, h, w, h * w)
    features = np.broadcast_to(features, (mask_logits.shape[1], *features.shape[1:]))
    return FactoredPredictions(class_logits, mask_logits.reshape(*mask_logits.shape[:3], h * w), features)


def mask_logits(predictions: FactoredPredictions) -> np.ndarray:
    return np.asarray(jax.tree.map(jnp.asarray, predictions).mask_logits)


def match_all(predictions, targets, points, config):
    """Costs, queries and number of non-finite costs of each prediction."""
    masks = np.moveaxis(mask_logits(predictions), 2, -1)
    arguments = [jnp.asarray(x) for x in (predictions.class_logits, masks, points)]

    @jax.jit
    def one(targets, logits, masks, points):
        labels = sample_labels(pack_labels(targets.labels), jnp.arange(len(points)), points)
        logits_at_points = jax.vmap(sample_masks_at_shared_points)(masks, points)
        costs = matching_costs(logits, logits_at_points, targets, labels, config)
        (queries,), non_finite = match(costs[None], targets)
        return costs, queries, non_finite

    return [np.stack(each) for each in zip(*(one(targets, *own) for own in zip(*arguments, strict=True)), strict=True)]


def loss_and_gradient(
    predictions: FactoredPredictions, targets: Targets, randomness, config: ConfigDict
) -> tuple[LossTerms, FactoredPredictions]:
    def total(predictions, targets, randomness):
        terms = segmentation_loss(predictions, targets, randomness, config)
        return terms.total, terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(predictions, targets, randomness)
    return terms, gradient


def test_points_chosen_roughly_are_as_uncertain_up_to_rounding():
    rng = np.random.default_rng(3)
    masks = np.kron(rng.normal(0, 4, (3, 8, 12)), np.ones((4, 4))) + rng.normal(size=(3, 32, 48))
    masks, points = jnp.asarray(masks, jnp.float32), jnp.asarray(rng.random((3, 900, 2)), jnp.float32)
    logits, x, y = (np.asarray(found) for found in jax.jit(chosen_roughly, static_argnums=2)(masks, points, 300))
    candidates = np.asarray(sample_masks(masks, points))
    numbers = [{tuple(point): number for number, point in enumerate(own)} for own in np.asarray(points)]
    xy = np.stack([x, y], axis=-1)
    place = np.array([[own[tuple(point)] for point in found] for own, found in zip(numbers, xy, strict=True)])
    assert (np.diff(place, axis=1) > 0).all()  # each once, in their order
    np.testing.assert_allclose(logits, np.take_along_axis(candidates, place, axis=1), atol=1e-3)
    exact = np.argsort(np.abs(candidates), axis=1, kind="stable")[:, :300]
    threshold = np.abs(np.take_along_axis(candidates, exact, axis=1)).max(axis=1)
    assert (np.abs(logits).max(axis=1) <= threshold + 2**-7 * np.abs(masks).max()).all()
    same = [len(np.intersect1d(*pair)) for pair in zip(place, exact, strict=True)]
    assert min(same) >= 294


@pytest.mark.parametrize("points", [1, 7, 40, 12544])
def test_softplus_sums(points):
    logits = np.random.default_rng(points).normal(0, 8, (2, points, 3)).astype(np.float32)
    logits[0, 0] = [-1000, 0, 1000]
    found = jax.jit(SampledMasks.of)(logits).softplus_sums
    np.testing.assert_allclose(found, np.logaddexp(0, logits.astype(np.float64)).sum(axis=1), rtol=2e-6, atol=1e-6)
    assert np.isnan(jax.jit(SampledMasks.of)(np.full((1, points, 1), np.nan)).softplus_sums).all()


# Recorded numbers


def load_golden(name: str) -> tuple[dict[str, np.ndarray], FactoredPredictions, Targets, SamplingPoints]:
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    shape = golden["target_masks_shape"]  # B, T, H, W
    masks = np.unpackbits(golden["target_masks"], axis=-1, count=shape[-1]).astype(bool)
    assert masks.sum(axis=1).max() == 1  # the masks of an image are disjoint, so a label map can hold them
    labels = np.full((shape[0], *shape[2:]), 255, np.uint8)
    for b, t in zip(*np.nonzero(golden["target_labels"] >= 0), strict=True):
        labels[b][masks[b, t]] = golden["target_labels"][b, t]
    # Recorded points lie pair after pair: image by image, within an image by increasing number of the query.
    queries = golden["matched_query"]
    points = {}
    for field in ("oversampled_points", "random_points"):
        points[field] = np.zeros((*queries.shape, *golden[field].shape[2:]), np.float32)
        for prediction, matched in enumerate(queries):
            pairs = [(b, t) for b, own in enumerate(matched) for t in np.argsort(own) if own[t] >= 0]
            for recorded, (b, t) in zip(golden[field][prediction], pairs, strict=True):
                points[field][prediction, b, t] = recorded
    return (
        golden,
        predictions_of(golden["pred_logits"], golden["pred_masks"]),
        Targets(labels, golden["target_labels"].astype(np.int32)),
        SamplingPoints(golden["matcher_points"], points["oversampled_points"], points["random_points"]),
    )


@pytest.mark.parametrize("name", ["loss_two_images", "loss_empty_image"])
def test_golden_matches(name):
    golden, predictions, targets, points = load_golden(name)
    config = loss_config(256)
    costs, queries, non_finite_costs = match_all(predictions, targets, points.matching, config)
    real = ~np.isnan(golden["cost_matrix"])
    np.testing.assert_allclose(costs[real], golden["cost_matrix"][real], atol=1e-5)
    np.testing.assert_array_equal(queries, golden["matched_query"])
    assert not np.any(non_finite_costs)


@pytest.mark.parametrize("name", ["loss_two_images", "loss_empty_image"])
def test_golden_losses_and_gradients(name):
    golden, predictions, targets, points = load_golden(name)
    terms, gradient = loss_and_gradient(predictions, targets, points, loss_config(256))
    np.testing.assert_allclose(terms.class_loss, golden["loss_ce"], rtol=1e-5)
    np.testing.assert_allclose(terms.mask_loss, golden["loss_mask"], rtol=1e-5)
    np.testing.assert_allclose(terms.dice_loss, golden["loss_dice"], rtol=1e-5)
    np.testing.assert_allclose(terms.total, golden["total"], rtol=1e-5)
    np.testing.assert_array_equal(terms.queries, golden["matched_query"])
    assert terms.num_targets == golden["target_counts"].sum()
    for found, field in ((gradient.class_logits, "grad_pred_logits"), (gradient.mask_embeddings, "grad_pred_masks")):
        expected = golden[field].reshape(found.shape)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


# The plain version


def random_case(seed: int, num_targets: list[int], max_targets: int, num_queries: int, num_classes: int = 30):
    """FactoredPredictions (L1 = 2) and targets of blocks of random classes, one of them absent from the map."""
    rng = np.random.default_rng(seed)
    b = len(num_targets)
    classes = np.full((b, max_targets), -1, np.int32)
    labels = np.full((b, 40, 48), 255, np.int32)
    for image, n in enumerate(num_targets):
        classes[image, :n] = np.sort(rng.choice(num_classes, n, replace=False))
        present = np.append(classes[image, : max(n - 1, 1)], 255) if n else [255]
        labels[image] = np.kron(rng.choice(present, (5, 6)), np.ones((8, 8), int))
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    logits, embeddings = normal(2, b, num_queries, num_classes + 1), normal(2, b, num_queries, 9)
    predictions = FactoredPredictions(logits, embeddings, normal(b, 10, 12, 9))  # mask logits of standard deviation 3
    return predictions, Targets(labels, classes)


def points_of_key(key, predictions: FactoredPredictions, targets: Targets, config: ConfigDict) -> SamplingPoints:
    """The points that the loss draws from a key, separately for each prediction, image and target."""
    matching_key, loss_key = jax.random.split(key)
    (num_predictions, b), t = predictions.class_logits.shape[:2], targets.classes.shape[1]
    important = int(0.75 * config.num_points)
    counts = PointCounts(3 * config.num_points, important, config.num_points - important)
    matching = np.zeros((num_predictions, b, config.num_points, 2), np.float32)
    oversampled = np.zeros((num_predictions, b, t, counts.oversampled, 2), np.float32)
    uniform = np.zeros((num_predictions, b, t, counts.uniform, 2), np.float32)
    for pair in np.ndindex(num_predictions, b):
        matching[pair] = draw_matching_points(matching_key, *pair, config.num_points)
    for pair in np.ndindex(num_predictions, b, t):
        oversampled[pair], uniform[pair] = draw_loss_points(loss_key, *pair, counts)
    return SamplingPoints(matching, oversampled, uniform)


@pytest.mark.parametrize(
    ("num_targets", "max_targets", "num_queries", "points_given", "at_once"),
    [
        pytest.param([2, 0, 3], 5, 8, False, 1, marks=pytest.mark.slow),
        ([2, 0, 3], 5, 8, True, 4),
        pytest.param([4, 4], 4, 4, False, 3, marks=pytest.mark.slow),
        pytest.param([20, 17], 21, 23, True, 1, marks=pytest.mark.slow),
        ([0, 0], 3, 5, False, 1),
        pytest.param([2, 0, 3], 5, 8, False, "as on a GPU", marks=pytest.mark.slow),
        pytest.param([20, 17], 21, 23, False, "as on a GPU", marks=pytest.mark.slow),
    ],
    ids=["padded", "padded, points given", "as many targets as queries", "many", "none", "GPU", "many, GPU"],
)
def test_the_plain_version_agrees(num_targets, max_targets, num_queries, points_given, at_once, monkeypatch):
    predictions, targets = random_case(0, num_targets, max_targets, num_queries)
    config = loss_config(40)
    key = jax.random.key(3)
    points = points_of_key(key, predictions, targets, config)
    queries = reference.match_all(predictions, targets, points.matching, config)
    chosen = reference.choose_points(predictions, queries, points, config)
    plain_loss = jax.value_and_grad(reference.segmentation_loss)
    expected, expected_gradient = plain_loss(predictions, targets, queries, chosen, config)

    if at_once == "as on a GPU":  # its choices, except for the kernels, which have their own tests
        take = lambda *arguments, default, rocm=None, **_: (rocm or default)(*arguments)
        monkeypatch.setattr(jax.lax, "platform_dependent", take)
    else:
        monkeypatch.setattr(mask_loss, "PAIRS_AT_ONCE", {"default": at_once})
    terms, gradient = loss_and_gradient(predictions, targets, points if points_given else key, config)
    assert terms.num_targets == sum(num_targets)
    np.testing.assert_array_equal(terms.queries, queries)
    np.testing.assert_allclose(terms.total, expected, rtol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-7), gradient, expected_gradient)


def points_of_each_pair(points: SharedPoints, predictions: FactoredPredictions, targets: Targets) -> SamplingPoints:
    """The shared points, once for each pair that shares them."""
    num_predictions, (b, t) = len(predictions.class_logits), targets.classes.shape
    matching = np.broadcast_to(points.matching, (num_predictions, *points.matching.shape))
    pairs = (
        np.broadcast_to(x[:, None], (num_predictions, b, t, *x.shape[1:])) for x in (points.oversampled, points.uniform)
    )
    return SamplingPoints(matching, *pairs)


@pytest.mark.parametrize(
    ("num_targets", "max_targets", "num_queries", "points_given"),
    [
        ([2, 0, 3], 5, 8, False),
        pytest.param([4, 4], 4, 4, True, marks=pytest.mark.slow),
        pytest.param([20, 17], 21, 23, False, marks=pytest.mark.slow),
        ([0, 0], 3, 5, False),
    ],
    ids=["padded", "as many targets as queries, points given", "many", "none"],
)
def test_the_plain_version_agrees_with_shared_points(num_targets, max_targets, num_queries, points_given):
    predictions, targets = random_case(0, num_targets, max_targets, num_queries)
    config, key = loss_config(40), jax.random.key(3)
    config.shared_points = True
    shared = jax.tree.map(np.asarray, shared_points(key, config, len(num_targets), 0))
    points = points_of_each_pair(shared, predictions, targets)
    queries = reference.match_all(predictions, targets, points.matching, config)
    chosen = reference.choose_points(predictions, queries, points, config)
    plain_loss = jax.value_and_grad(reference.segmentation_loss)
    expected, expected_gradient = plain_loss(predictions, targets, queries, chosen, config)

    terms, gradient = loss_and_gradient(predictions, targets, shared if points_given else key, config)
    assert terms.num_targets == sum(num_targets)
    np.testing.assert_array_equal(terms.queries, queries)
    np.testing.assert_allclose(terms.total, expected, rtol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-7), gradient, expected_gradient)


def test_shared_points_give_the_terms_of_points_for_each_pair():
    """The same points, shared and repeated for each pair, have the same loss, term by term."""
    predictions, targets = random_case(4, [3, 1], 4, 6)
    config = loss_config(60)
    shared = shared_points(jax.random.key(0), config, 2, 0)
    expected, expected_gradient = loss_and_gradient(
        predictions, targets, points_of_each_pair(shared, predictions, targets), config
    )
    config.shared_points = True
    terms, gradient = loss_and_gradient(predictions, targets, shared, config)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6), terms, expected)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-7), gradient, expected_gradient)


@pytest.mark.parametrize("shared", [False, True], ids=["points of pairs", "shared points"])
def test_embeddings_of_a_network_in_bfloat16(shared):
    """On a CPU, loss and gradient of float32, the gradient of the embeddings rounded."""
    predictions, targets = random_case(0, [2, 0, 3], 5, 8)
    rounded = jnp.asarray(predictions.mask_embeddings, jnp.bfloat16)
    config, key = loss_config(40), jax.random.key(3)
    config.shared_points = shared
    exact = predictions.replace(mask_embeddings=rounded.astype(jnp.float32))
    expected, expected_gradient = loss_and_gradient(exact, targets, key, config)
    terms, gradient = loss_and_gradient(predictions.replace(mask_embeddings=rounded), targets, key, config)
    assert gradient.mask_embeddings.dtype == jnp.bfloat16
    np.testing.assert_allclose(terms.total, expected.total, rtol=1e-6)
    np.testing.assert_allclose(gradient.mask_features, expected_gradient.mask_features, atol=2e-7)
    rounded_gradient = np.asarray(gradient.mask_embeddings, np.float32)
    np.testing.assert_allclose(rounded_gradient, expected_gradient.mask_embeddings, rtol=2**-8)


@pytest.mark.parametrize("weights", [(), (0.2, 1.0, 1.5, 2.0, 3.0, 4.0)])
def test_class_losses_are_those_of_pytorch(weights):
    import torch

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5, 7)).astype(np.float32)  # six classes and "no object", five queries
    classes = np.array([[0, 4, -1], [5, -1, -1], [-1, -1, -1]], np.int32)
    queries = np.array([[[3, 1, -1], [0, -1, -1], [-1] * 3], [[2, 4, -1], [4, -1, -1], [-1] * 3]], np.int32)
    wanted = np.full((2, 3, 5), 6)
    for prediction, image, target in zip(*np.nonzero(queries >= 0), strict=True):
        wanted[prediction, image, queries[prediction, image, target]] = classes[image, target]
    sums, weight_sums = class_losses(*map(jnp.asarray, (logits, classes, queries)), 0.1, weights)
    for prediction in range(2):
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(logits[prediction]).flatten(0, 1),
            torch.tensor(wanted[prediction]).flatten(),
            torch.tensor([*(weights or [1.0] * 6), 0.1], dtype=torch.float32),
        )
        np.testing.assert_allclose(sums[prediction] / weight_sums[prediction], expected, rtol=1e-5)


def test_the_plain_version_agrees_with_class_weights():
    predictions, targets = random_case(0, [2, 0, 3], 5, 8)
    config = loss_config(40)
    points = points_of_key(jax.random.key(3), predictions, targets, config)
    queries = reference.match_all(predictions, targets, points.matching, config)
    chosen = reference.choose_points(predictions, queries, points, config)
    unweighted = reference.segmentation_loss(predictions, targets, queries, chosen, config)
    config.class_weights = tuple(np.random.default_rng(1).uniform(0.2, 5, 30).tolist())
    expected = reference.segmentation_loss(predictions, targets, queries, chosen, config)
    terms, _ = loss_and_gradient(predictions, targets, points, config)
    np.testing.assert_allclose(terms.total, expected, rtol=2e-6)
    assert abs(expected - unweighted) > 1e-3


@pytest.mark.slow
def test_gradient_is_that_of_finite_differences():
    predictions, targets = random_case(1, [2, 3], 4, 6)
    config = loss_config(64)
    points = points_of_key(jax.random.key(0), predictions, targets, config)
    # Only uniform points: with importance the loss jumps where the choice of points changes.
    config.importance_ratio = 0.0
    points = points.replace(uniform=points.oversampled[..., :64, :])
    _, gradient = loss_and_gradient(predictions, targets, points, config)
    loss = jax.jit(lambda predictions: segmentation_loss(predictions, targets, points, config).total)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), predictions)
        moved = lambda step, d=direction: loss(jax.tree.map(lambda x, d: x + step * d, predictions, d))
        slope = (moved(1e-2) - moved(-1e-2)) / 2e-2
        products = jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)
        np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=5e-3, atol=1e-3)


def test_only_the_total_has_a_gradient():
    predictions, targets = random_case(1, [2, 3], 4, 6)
    terms = lambda p: segmentation_loss(p, targets, jax.random.key(0), loss_config(16))
    parts = lambda p: (terms(p).class_loss + terms(p).mask_loss + terms(p).dice_loss).sum()
    gradient = jax.jit(jax.grad(parts))(predictions)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


# Bad input


def test_nan_in_one_query_is_counted_and_the_others_are_matched():
    predictions, targets = random_case(2, [3, 2], 4, 8)
    predictions.mask_embeddings[1, 0, 5] = np.nan
    config = loss_config(32)
    points = np.asarray(jax.random.uniform(jax.random.key(0), (2, 2, 32, 2)))
    _, queries, non_finite_costs = match_all(predictions, targets, points, config)
    np.testing.assert_array_equal(non_finite_costs, [0, 3])  # one for each target of the image
    others = np.delete(np.arange(8), 5)
    logits, masks = predictions.class_logits[1, 0, others], mask_logits(predictions)[1, 0, others]
    expected = reference.match(logits, masks, targets.labels[0], targets.classes[0, :3], points[1, 0], config)
    np.testing.assert_array_equal(queries[1, 0, :3], others[expected])


@pytest.mark.slow
@pytest.mark.parametrize("field", ["class_logits", "mask_embeddings", "mask_features"])
def test_nan_everywhere_ends_with_a_loss_that_is_not_finite(field):
    predictions, targets = random_case(2, [3, 2], 4, 8)
    getattr(predictions, field)[:] = np.nan
    terms, _ = loss_and_gradient(predictions, targets, jax.random.key(0), loss_config(32))
    assert not np.isfinite(terms.total)
    assert terms.non_finite_costs == 2 * 8 * 5  # predictions, queries, targets


def test_wrong_sizes_are_refused():
    predictions, targets = random_case(2, [3, 2], 6, 5)
    with pytest.raises(ValueError, match="max_targets is 6, but the model has only 5 queries"):
        segmentation_loss(predictions, targets, jax.random.key(0), loss_config(32))
    _, predictions, targets, points = load_golden("loss_two_images")
    with pytest.raises(ValueError, match=r"config.loss wants \(100, 300, 25\)"):
        segmentation_loss(predictions, targets, points, loss_config(100))
    shared = shared_points(jax.random.key(0), loss_config(32), 2, 0)
    with pytest.raises(ValueError, match="shared_points = False takes SamplingPoints, not SharedPoints"):
        segmentation_loss(predictions, targets, shared, loss_config(32))
    config = loss_config(100)
    config.shared_points = True
    with pytest.raises(ValueError, match="shared_points = True takes SharedPoints, not SamplingPoints"):
        segmentation_loss(predictions, targets, points, config)
    with pytest.raises(ValueError, match=r"SharedPoints has \(32, 96, 8\) .* config.loss wants \(100, 300, 25\)"):
        segmentation_loss(predictions, targets, shared, config)


def test_wrong_shapes_are_caught_while_tests_run():
    probabilities, classes = np.ones((2, 8, 31), np.float32), np.zeros((3, 5), np.int32)  # of two images, of three
    with pytest.raises(TypeCheckError, match="classes"):
        matcher.class_cost(jnp.asarray(probabilities), jnp.asarray(classes))


# Several devices

SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fasseg_jax.models.predictions import FactoredPredictions
from fasseg_jax.losses.criterion import segmentation_loss, sharded_segmentation_loss
from fasseg_jax.losses.points import shared_points
from tests.losses.test_loss import loss_config, points_of_key, random_case

assert jax.device_count() == 8
config, key = loss_config(64), jax.random.key(5)
predictions, targets = random_case(7, [3, 0, 1, 5, 2, 2, 4, 0, 1, 1, 0, 0, 6, 5, 4, 3], 6, 9)

def evaluate(loss, *arguments):
    def total(*arguments):
        terms = loss(*arguments)
        return terms.total, terms
    (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(*arguments)
    return jax.tree.map(np.asarray, (terms, gradient))

def compare(found, expected):
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()

for config.shared_points in (False, True):
    alone = evaluate(lambda *arguments: segmentation_loss(*arguments, config), predictions, targets, key)
    if config.shared_points:
        points = shared_points(key, config, len(targets.classes), 0)
    else:
        points = points_of_key(key, predictions, targets, config)
    for shape, axes, randomness in (((8,), "data", key), ((4, 2), ("data", "more"), points)):
        mesh = Mesh(np.array(jax.devices()).reshape(shape), axes)
        put = lambda tree, *spec: jax.device_put(tree, NamedSharding(mesh, P(*spec)))
        loss = sharded_segmentation_loss(mesh, axes, config)
        images_second = put((predictions.class_logits, predictions.mask_embeddings), None, axes)
        of_predictions = FactoredPredictions(*images_second, put(predictions.mask_features, axes))
        compare(evaluate(loss, of_predictions, put(targets, axes), randomness), alone)
print("equal")
"""


@pytest.mark.slow
def test_eight_devices_give_the_loss_and_gradient_of_one():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(8),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.stdout.endswith("equal\n"), run.stderr
