"""The jitted step: accumulation, averaging, precision, rematerialization, no transfers."""

import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fasseg_jax.data.preprocessing import normalize
from fasseg_jax.losses.criterion import segmentation_loss
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model
from fasseg_jax.runtime.distributed import make_mesh, replicated, shard_batch
from fasseg_jax.training.optimizer import make_optimizer, merge, split
from fasseg_jax.training.train_step import TrainState, make_train_step
from tests.helpers.tiny import random_variables
from tests.helpers.tiny import tiny_config as make_tiny_config
from tests.helpers.training_runs import ROOT, environment

ALL_KINDS_OF_LAYERS = 5  # of the decoder; two compile in half the time where their kind does not matter


@pytest.fixture
def config(tiny_config):
    tiny_config.model.decoder.num_layers = 2
    tiny_config.loss.num_points = 32
    tiny_config.train.steps = 10
    return tiny_config


def batch(size=4):
    """Images and targets on the device; each class is a block of the image."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (size, 2, 2)), np.ones((32, 32))).astype(np.uint8)
    classes = np.full((size, 4), -1, np.int32)
    for row, image in zip(classes, labels, strict=True):
        present = np.unique(image)
        row[: len(present)] = present
    images = (60 * labels[..., None] + rng.integers(0, 60, (size, 64, 64, 3))).astype(np.uint8)
    return shard_batch((images, Targets(labels, classes)), make_mesh())


def start(config, optimizer=None):
    """Model, step function and state before the first step."""
    model = build_model(config.model)
    variables = jax.device_put(random_variables(model), replicated(make_mesh()))
    optimizer = optimizer or make_optimizer(config, variables["params"])
    state = TrainState.create(variables, optimizer, ema=config.train.ema_decay > 0)
    return make_train_step(config, model, optimizer, make_mesh(), state), state


def keep_gradients():
    """Takes the place of an optimizer: parameters stay, the state holds the gradients."""
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    return optax.GradientTransformation(zeros, lambda gradients, state, params: (zeros(gradients), gradients))


def copy(tree):
    return jax.tree.map(jnp.array, tree)


def relative_difference(one, other):
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, one, other))
    return float(difference / optax.tree.norm(other))


@pytest.mark.slow
def test_losses_fall_without_transfers(config):
    """On one batch. A compiled step moves nothing between host and device, and reuses the memory of its state."""
    config.model.decoder.num_layers = ALL_KINDS_OF_LAYERS
    config.optimizer.learning_rate = 3e-3
    step, state = start(config)
    images, targets = batch()
    given = state
    state, first = step(given, images, targets)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given.params))
    with jax.transfer_guard("disallow"):
        for _ in range(8):
            state, last = step(state, images, targets)
        jax.block_until_ready(last)
    assert last.loss < 0.9 * first.loss
    assert int(state.step) == 9


@pytest.mark.slow
def test_moving_average(config):
    config.train.ema_decay = 0.15
    step, state = start(config)
    images, targets = batch()
    expected = jax.device_get(state.params)
    for decay in (1 / 10, 0.15, 0.15):  # 2 / 11 and 3 / 12 are more
        average = optax.ema(decay, debias=False)
        state, _ = step(state, images, targets)
        expected, _ = average.update(
            jax.device_get(state.params), optax.EmaState(count=np.zeros((), np.int32), ema=expected)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.ema_params, expected)
    assert state.variables()["params"] is state.ema_params


@pytest.mark.slow
@pytest.mark.parametrize("shared_points", [False, True])
def test_accumulation_is_the_mean_over_parts(config, shared_points):
    """Each part has its own random numbers, which this test computes again."""
    config.loss.shared_points = shared_points
    config.train.accumulation = 2
    step, state = start(config, keep_gradients())
    images, targets = batch()
    accumulated, metrics = step(copy(state), images, targets)

    config.train.accumulation = 1
    part_gradients, losses = [], []
    key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
    gradients_of_part = gradients_with_key(config)
    for part, part_key in enumerate(jax.random.split(key, 2)):
        loss, gradients = gradients_of_part(
            state.params, state, *jax.tree.map(lambda x, i=part: x[i::2], (images, targets)), part_key
        )
        part_gradients.append(gradients)
        losses.append(loss)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *part_gradients)
    assert relative_difference(accumulated.opt_state, mean) < 1e-4
    np.testing.assert_allclose(metrics.loss, np.mean(losses), rtol=1e-5)


def gradients_with_key(config):
    """A function that computes loss and gradients of some images, without sharding or accumulation."""
    model = build_model(config.model)

    @jax.jit
    @jax.value_and_grad
    def loss(params, state, images, targets, key):
        variables = {"params": params, "batch_stats": state.batch_stats}
        predictions = model.apply(variables, normalize(images), train=True, all_predictions="factored")
        _, points_key = jax.random.split(key)
        return segmentation_loss(predictions, targets, points_key, config.loss).total

    return loss


def all_gradients(**model) -> dict:
    """Of one step with every kind of decoder layer; fields of the model may differ."""
    config = make_tiny_config(num_classes=5)
    config.loss.num_points = 32
    config.model.update(model)
    step, state = start(config, keep_gradients())
    return step(state, *batch())[0].opt_state


@pytest.fixture(scope="module")
def plain_gradients():
    return all_gradients()


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value", "tolerance"), [("remat", True, 1e-5), ("dtype", "bfloat16", 0.15)])
def test_variants_have_the_same_gradients(plain_gradients, field, value, tolerance):
    """Rematerialization changes only the memory; bfloat16 keeps the direction of the gradients."""
    gradients = all_gradients(**{field: value})
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    assert relative_difference(gradients, plain_gradients) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_a_frozen_backbone(backbone):
    """It computes as in prediction, stays the same to the bit, has no state, and saves memory and gradients."""
    config = make_tiny_config(backbone)
    config.model.decoder.num_layers = 2
    config.loss.num_points = 32
    config.train.update(steps=10, ema_decay=0.5)
    field, value = ("norm", "batch_norm") if backbone == "resnet" else ("drop_path", 0.9)
    config.model.backbone[field] = value
    config.optimizer.update(backbone_multiplier=0.0, clip_norm=1e9)
    images, targets = batch()
    step, state = start(config)
    memory = step.lower(state, images, targets).compile().memory_analysis().temp_size_in_bytes
    before = copy(state)

    # The gradients of a model whose backbone stands outside of it.
    def loss(trained):
        model = build_model(config.model)
        variables = {"params": merge(trained, frozen), "batch_stats": before.batch_stats}

        def forward(module, images):
            features = module.backbone(images, False)
            return module.decoder(module.pixel_decoder(features), "factored")

        predictions = model.apply(variables, normalize(images), method=forward)
        return segmentation_loss(predictions, targets, points_key, config.loss).total

    trained, frozen = split(before.params, config)
    points_key = jax.random.split(jax.random.fold_in(jax.random.key(config.train.seed), 0))[1]
    gradients = jax.jit(jax.grad(loss))(trained)
    state, metrics = step(state, images, targets)
    np.testing.assert_allclose(metrics.gradient_norm, optax.tree.norm(gradients), rtol=1e-4)

    for params in (state.params, state.ema_params):
        assert jax.tree.all(jax.tree.map(np.array_equal, split(params, config)[1], frozen))
        stuck = jax.tree.map(
            lambda new, old, gradient: np.array_equal(new, old) and np.abs(gradient).max() > 1e-6,
            *(split(params, config)[0], trained, gradients),
        )
        assert not any(jax.tree.leaves(stuck)), stuck
    assert jax.tree.all(jax.tree.map(np.array_equal, state.batch_stats, before.batch_stats))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert 2 * numbers <= sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 2 * numbers + 10
    assert ("pyramid" in trained.get("backbone", {})) == (backbone == "vit")

    if backbone == "resnet":  # the tiny ViT has too few activations to tell, and compiling takes long
        config.optimizer.backbone_multiplier = 0.1
        step, state = start(config)
        assert memory < 0.9 * step.lower(state, images, targets).compile().memory_analysis().temp_size_in_bytes


PRINT_STEP = """
import jax
from tests.helpers.tiny import tiny_config
from tests.training.test_train_step import batch, start

config = tiny_config()
config.loss.num_points = 32
# Feed-forward layers of the full size: of so many parameters, the few that every prediction uses are a small part.
config.model.pixel_decoder.ffn_dim = 1024
config.model.decoder.update(ffn_dim=2048, num_layers=2, num_queries=6)
step, state = start(config)
print(sum(x.size for x in jax.tree.leaves(state.params)))
print(step.lower(state, *batch(8)).compile().as_text())
"""


@pytest.mark.slow
def test_devices_exchange_gradients_and_nothing_else():
    """Of eight devices. Images, features and masks stay on theirs."""
    result = subprocess.run(
        [sys.executable, "-c", PRINT_STEP], cwd=ROOT, env=environment(8), capture_output=True, text=True, check=True
    )
    parameters, program = result.stdout.split("\n", 1)
    collectives = r"= (\(.*?\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    found = re.findall(collectives, program)
    assert {kind for _, kind in found} == {"all-reduce"}
    sizes = [re.findall(r"\w+\[([\d,]*)\]", shapes) for shapes, _ in found]
    numbers = sum(math.prod(map(int, filter(None, size.split(",")))) for shapes in sizes for size in shapes)
    assert int(parameters) <= numbers < 1.05 * int(parameters)  # the gradients of the heads come once a prediction
