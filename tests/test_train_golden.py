"""Three steps of training against the official program, with its points: losses, gradients, changes of parameters."""

from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from golden.synthetic_weights import synthetic_state_dict
from weight_cases import OFFICIAL

from fasseg_jax import build_model, convert_state_dict, load_config
from fasseg_jax.loss import segmentation_loss
from fasseg_jax.matching import Targets, match
from fasseg_jax.optimizer import learning_rate_schedule, make_optimizer, parameter_groups
from fasseg_jax.points import SamplingPoints
from fasseg_jax.preprocessing import normalise
from fasseg_jax.weight_rules import MODEL_RULES

STEPS = 3
# Of the gradients' global norm: parameters with less (their gradient is zero but for rounding) are not compared, as
# Adam scales up noise.
SMALLEST_GRADIENT = 1e-5


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "train_r50_ade20k.npz")


def recorded_points(golden, step: int) -> SamplingPoints:
    """The official program's points, by target instead of by query."""
    queries = golden[f"step{step}/matched_query"]  # (L+1, B, T)
    recorded = [golden[f"step{step}/{name}_points"] for name in ("oversampled", "random")]
    by_target = [np.zeros((*queries.shape, *points.shape[2:]), np.float32) for points in recorded]
    for prediction, matched in enumerate(queries):
        pairs = sorted((b, q, t) for (b, t), q in np.ndenumerate(matched) if q >= 0)
        for number, (b, _, t) in enumerate(pairs):
            for ours, theirs in zip(by_target, recorded, strict=True):
                ours[prediction, b, t] = theirs[prediction, number]
    return SamplingPoints(golden[f"step{step}/matcher_points"], *by_target)


def classes_present(labels: np.ndarray, max_targets: int) -> np.ndarray:
    classes = np.full((len(labels), max_targets), -1, np.int32)
    for row, image in zip(classes, labels, strict=True):
        present = np.setdiff1d(image, 255)
        row[: len(present)] = present
    return classes


def by_official_name(tree) -> dict[str, np.ndarray]:
    """Leaves as PyTorch has them, by its names."""
    leaves = {}
    for path, value in flatten_dict(tree, sep="/").items():
        rule, name = next((rule, name) for rule in MODEL_RULES if (name := rule.name_of(path)))
        leaves[name] = np.asarray(value).transpose(np.argsort(rule.axes)) if rule.axes else np.asarray(value)
    return leaves


@pytest.fixture(scope="module")
def run(golden):
    """What our program makes of the same three steps."""
    config = load_config("configs/ade20k.py:r50")
    config.loss.num_points = 256
    config.train.steps = 10
    model = build_model(config.model)
    variables = convert_state_dict(synthetic_state_dict(OFFICIAL["faseg_r50_ade20k"]["state_dict"]), config.model)
    optimizer = make_optimizer(config, variables["params"])
    max_targets = golden["step0/matched_query"].shape[2]
    labels = golden["segmentations"]
    targets = Targets(jnp.asarray(labels), jnp.asarray(classes_present(labels, max_targets)))
    images = normalise(golden["images"])

    @jax.jit
    def step(params, opt_state, points):
        def loss(params):
            predictions = model.apply({**variables, "params": params}, images, train=True, all_predictions=True)
            terms = segmentation_loss(predictions, targets, points, config.loss)
            return terms.total, (terms, match(predictions, targets, points.matching, config.loss)[0])

        gradients, (terms, queries) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, gradients, terms, queries

    params, opt_state, record = variables["params"], optimizer.init(variables["params"]), defaultdict(list)
    for number in range(STEPS):
        params, opt_state, gradients, terms, queries = step(params, opt_state, recorded_points(golden, number))
        record["terms"].append(terms)
        record["queries"].append(queries)
        record["gradients"].append(by_official_name(gradients))
    record["before"], record["after"] = by_official_name(variables["params"]), by_official_name(params)
    return config, record


def test_groups_and_rates(golden, run):
    """Every trained parameter's rate and decay, and the schedule."""
    config, record = run
    by_path = flatten_dict(parameter_groups(unflatten(record["before"])), sep="/")
    groups = {name: by_path[path_of(name)] for name in record["before"]}
    assert set(groups) == set(golden["param_names"])
    for name, rate, decay in zip(golden["param_names"], golden["param_lr"], golden["param_weight_decay"], strict=True):
        group = groups[name]
        assert (1e-5 if group.startswith("backbone") else 1e-4) == pytest.approx(rate), name
        assert (0 if group.endswith("fixed") else 0.05) == pytest.approx(decay), name
    for number in range(STEPS):
        rate = float(learning_rate_schedule(config)(number))
        np.testing.assert_allclose([rate, 0.1 * rate], golden[f"step{number}/lr"], rtol=1e-6)


def path_of(name: str) -> str:
    return next(path for rule in MODEL_RULES if (path := rule.path_of(name)))


def unflatten(leaves):
    """By official name -> a tree of ours."""
    return unflatten_dict({path_of(name): value for name, value in leaves.items()}, sep="/")


def test_matches_and_losses(golden, run):
    config, record = run
    for number in range(STEPS):
        terms = record["terms"][number]
        np.testing.assert_array_equal(record["queries"][number], golden[f"step{number}/matched_query"])
        np.testing.assert_allclose(terms.total, golden[f"step{number}/total"], rtol=1e-4)
        for ours, theirs in (("class", "ce"), ("mask", "mask"), ("dice", "dice")):
            loss = config.loss[f"{ours}_weight"] * np.asarray(getattr(terms, f"{ours}_loss"))
            expected = golden[f"step{number}/loss_{theirs}"]
            np.testing.assert_allclose(loss.sum(), expected.sum(), rtol=1e-3, err_msg=f"{ours} of step {number}")
            if number == 0:
                np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=ours)


def test_gradients(golden, run):
    gradients = run[1]["gradients"][0]
    norms = np.array([np.linalg.norm(gradients[name]) for name in golden["param_names"]])
    np.testing.assert_allclose(np.linalg.norm(norms), golden["step0/grad_global_norm"], rtol=1e-4)
    noise = SMALLEST_GRADIENT * float(golden["step0/grad_global_norm"])
    np.testing.assert_allclose(norms, golden["step0/grad_norms"], rtol=1e-3, atol=noise)
    compared = [key for key in golden.files if key.startswith("step0/grad/")]
    assert len(compared) > 5
    for key in compared:
        ours, expected = gradients[key.removeprefix("step0/grad/")], golden[key]
        # Where rounding moves one of the sampled points across the border between two pixels, the slope of the bilinear
        # interpolation jumps, and with it single elements of the sampling offsets' gradients. All others are close.
        assert np.linalg.norm(ours - expected) < 5e-3 * max(np.linalg.norm(expected), noise), key
        far = np.abs(ours - expected) > 1e-3 * max(np.abs(expected).max(), noise)
        assert far.mean() < 0.02, key
        assert "sampling_offsets" in key or not far.any(), key


def test_changes_of_parameters(golden, run):
    """Norms of the changes over the three steps within 2%, where the gradient is more than rounding noise."""
    _, record = run
    noise = SMALLEST_GRADIENT * float(golden["step0/grad_global_norm"])
    compared = 0
    for name, gradient, expected in zip(
        golden["param_names"], golden["step0/grad_norms"], golden["delta_norms"], strict=True
    ):
        if gradient > noise:
            change = np.linalg.norm(record["after"][name] - record["before"][name])
            np.testing.assert_allclose(change, expected, rtol=0.02, err_msg=name)
            compared += 1
    assert compared > 400
    for key in golden.files:
        if key.startswith("after/"):
            name = key.removeprefix("after/")
            largest = np.abs(golden[key] - record["before"][name]).max()
            np.testing.assert_allclose(record["after"][name], golden[key], rtol=0, atol=0.05 * largest, err_msg=key)
