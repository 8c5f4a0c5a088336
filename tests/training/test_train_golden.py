"""Three training steps compared with the official program, at its points: losses, gradients, changed parameters."""

import functools
from collections import defaultdict
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from fasseg_jax import build_model, convert_state_dict, load_config
from fasseg_jax.data.preprocessing import normalize
from fasseg_jax.losses import reference
from fasseg_jax.losses.criterion import segmentation_loss
from fasseg_jax.losses.points import SamplingPoints
from fasseg_jax.losses.targets import Targets
from fasseg_jax.training.optimizer import learning_rate_schedule, make_optimizer, parameter_groups
from fasseg_jax.weights.names.official import official_rules
from tests.golden.synthetic_weights import synthetic_state_dict
from tests.helpers import GOLDEN
from tests.helpers.weight_cases import OFFICIAL

pytestmark = pytest.mark.slow

STEPS = 3
RULES = official_rules("resnet")
# A fraction of the gradients' global norm. Parameters with smaller gradients (zero except for rounding) are not
# compared, because Adam scales up the noise.
SMALLEST_GRADIENT = 1e-5


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "train_r50_ade20k.npz")


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
    """Leaves in PyTorch's layout, by PyTorch's names."""
    leaves = {}
    for path, value in flatten_dict(tree, sep="/").items():
        rule, name = next((rule, name) for rule in RULES if (name := rule.name_of(path)))
        leaves[name] = np.asarray(value).transpose(np.argsort(rule.axes)) if rule.axes else np.asarray(value)
    return leaves


@pytest.fixture(scope="module")
def run(golden):
    """The same three steps by our program: what they found, and a function that repeats them from disturbed weights."""
    config = load_config("configs/ade20k.py:r50")
    config.loss.num_points = 256
    config.train.steps = 10
    model = build_model(config.model)
    variables = convert_state_dict(synthetic_state_dict(OFFICIAL["faseg_r50_ade20k"]["state_dict"]), config.model)
    optimizer = make_optimizer(config, variables["params"])
    max_targets = golden["step0/matched_query"].shape[2]
    labels = golden["segmentations"]
    targets = Targets(jnp.asarray(labels), jnp.asarray(classes_present(labels, max_targets)))
    images = normalize(golden["images"])

    # Of the full size: here running costs more than compiling, which the tests' flags make fast.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def step(params, opt_state, points):
        def loss(params):
            predictions = model.apply({**variables, "params": params}, images, train=True, all_predictions="factored")
            terms = segmentation_loss(predictions, targets, points, config.loss)
            return terms.total, (terms, predictions)

        gradients, (terms, predictions) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, gradients, terms, predictions

    def steps(params):
        opt_state, record = optimizer.init(params), defaultdict(list)
        for number in range(STEPS):
            params, opt_state, gradients, terms, predictions = step(params, opt_state, recorded_points(golden, number))
            record["terms"].append(jax.device_get(terms))
            record["gradients"].append(by_official_name(gradients))
            record["predictions"].append(predictions)
        return record | {"before": by_official_name(variables["params"]), "after": by_official_name(params)}

    def disturbed_steps(seed):
        rng = np.random.default_rng(seed)

        def disturb(x):
            return x * (1 + 1e-7 * rng.standard_normal(x.shape)).astype(np.float32)

        return steps(jax.tree.map(disturb, variables["params"]))

    return config, steps(variables["params"]), disturbed_steps


def test_groups_and_rates(golden, run):
    """Every trained parameter's rate and decay, and the schedule."""
    config, record, _ = run
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
    return next(path for rule in RULES if (path := rule.path_of(name)))


def unflatten(leaves):
    """Leaves by official name -> a tree of Flax parameters."""
    return unflatten_dict({path_of(name): value for name, value in leaves.items()}, sep="/")


def test_matches_and_losses(golden, run):
    config, record, _ = run
    for number in range(STEPS):
        terms = record["terms"][number]
        np.testing.assert_array_equal(terms.queries, golden[f"step{number}/matched_query"])
        np.testing.assert_allclose(terms.total, golden[f"step{number}/total"], rtol=1e-4)
        for ours, theirs in (("class", "ce"), ("mask", "mask"), ("dice", "dice")):
            loss = config.loss[f"{ours}_weight"] * np.asarray(getattr(terms, f"{ours}_loss"))
            expected = golden[f"step{number}/loss_{theirs}"]
            np.testing.assert_allclose(loss.sum(), expected.sum(), rtol=1e-3, err_msg=f"{ours} of step {number}")
            if number == 0:
                np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=ours)


# The later steps. Adam, whose epsilon is as large as clipped gradients, turns rounding into changes of parameters, and
# positions at the threshold of attention turn these into differences of a thousandth and more in mask logits. Of each
# pair's 768 points the 192 of the least |logit| are kept: where the last of these and the next are nearly equal, two
# programs may keep different ones, and one point of 256 moves a prediction's mean over its pairs by up to 0.2%.
# Recorded, of prediction 13 in the third step: target 0 of image 1, whose mask loss is 1.7e-3 off. Run in float64 our
# program has the official losses of the first step to 6e-7 and of the second to 5e-6, and there these two points lie
# 8e-5 apart; with the other point the recorded losses are met to 1e-5. So the official program fell on the other side.
NEAR_TIE = 8e-3  # of |logits|; the standard deviation of mask logits is 3 to 8
EXCHANGES = 2  # in one prediction at most
DISTURBANCES = 8


def mask_terms(golden, step: int, number: int, record):
    """Weighted mask and Dice loss (2,) of one prediction, and how much exchanges at near-ties would change them."""
    points = recorded_points(golden, step)
    predictions = jax.tree.map(np.asarray, record["predictions"][step])
    queries, labels = record["terms"][step].queries[number], golden["segmentations"]
    classes = classes_present(labels, queries.shape[1])
    total, exchanges = np.zeros(2), []
    for b, t in zip(*np.nonzero(queries >= 0), strict=True):
        mask = predictions.mask_features[b] @ predictions.mask_embeddings[number, b, queries[b, t]]  # (h, w)
        truth = (labels[b] == classes[b, t]).astype(np.float32)
        oversampled, uniform = points.oversampled[number, b, t], points.uniform[number, b, t]
        magnitudes = np.abs(np.asarray(reference.sample(mask, oversampled)))
        order, kept = np.argsort(magnitudes), len(oversampled) // 4

        def loss(chosen, mask=mask, truth=truth, oversampled=oversampled, uniform=uniform):
            at = np.concatenate([oversampled[chosen], uniform])
            return np.array(reference.mask_losses(mask, truth, at))

        own = loss(order[:kept])
        total += own
        # Of the last three points that are kept and the first three that are not.
        for out, into in np.ndindex(3, 3):
            out, into = kept - 1 - out, kept + into
            if magnitudes[order[into]] - magnitudes[order[out]] < NEAR_TIE:
                exchanges.append(loss(np.append(np.delete(order[:kept], out), order[into])) - own)
    scale = 5 / max(1, (queries >= 0).sum())  # the weight of both losses
    return scale * total, scale * np.array(exchanges).reshape(-1, 2)


@pytest.mark.parametrize(("step", "tolerance"), [(1, 2e-4), (2, 5e-4)])
def test_later_steps_agree_but_for_ties_of_points(golden, run, step, tolerance):
    """Each prediction's mask and Dice loss together, on one side or the other of near-ties."""
    _, record, _ = run
    recomputed, num_deviating = [], 0
    for number in range(14):
        loss, exchanges = mask_terms(golden, step, number, record)
        recomputed.append(loss)
        expected = np.array([golden[f"step{step}/loss_{kind}"][number] for kind in ("mask", "dice")])
        sides = [sum(c, start=loss) for k in range(EXCHANGES + 1) for c in combinations(exchanges, k)]
        deviations = [np.abs(side / expected - 1).max() for side in sides]
        assert min(deviations) < tolerance, f"prediction {number}: {min(deviations)}, without exchange {deviations[0]}"
        num_deviating += deviations[0] > tolerance
    assert num_deviating <= 5  # of 14; the others agree as they are
    # What is compared here is what the program found.
    terms = record["terms"][step]
    np.testing.assert_allclose(np.transpose(recomputed), 5 * np.stack([terms.mask_loss, terms.dice_loss]), rtol=2e-4)


def test_later_steps_amplify_rounding(run):
    """Disturbances of 1e-7 change single terms of the later steps as much as the two programs differ.

    Whether a disturbance moves a point across a near-tie, and across which, depends on the last bits of every sum. So
    several are tried until one does.
    """
    _, record, disturbed_steps = run
    tried = []
    for seed in range(DISTURBANCES):
        changes = relative_changes(disturbed_steps(seed), record)
        assert changes[0] < 1e-5
        tried.append(max(changes))
        if 5e-4 < tried[-1] < 1e-2:
            return
    pytest.fail(f"the disturbances changed single terms by {tried}")


def relative_changes(disturbed, record):
    """The largest relative change of a mask or Dice loss in each step."""
    return [
        np.max([np.abs(getattr(a, f"{kind}_loss") / getattr(b, f"{kind}_loss") - 1) for kind in ("mask", "dice")])
        for a, b in zip(disturbed["terms"], record["terms"], strict=True)
    ]


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
    """Norms of the changes over the three steps agree within 2% if the gradient is more than rounding noise."""
    _, record, _ = run
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
