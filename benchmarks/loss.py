"""Share of matching and loss in a training step: FASeg R50, 512 x 512, batch 2, float32.

    python benchmarks/loss.py [TARGETS_PER_IMAGE ...]

Compares a step, forward and backward, with the network only: the mask logits of all predictions, and the backward pass
for given gradients of these. The difference is the share of matching and loss, once with points drawn for each pair and
once with shared points. The programs take turns. Each image has the given numbers of targets (at most 40; by default 10
and 30).
"""

import itertools
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.config import load_config
from fasseg_jax.losses.criterion import segmentation_loss
from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model

BATCH, SIZE, MAX_TARGETS, REPEATS = 2, 512, 40, 5


def blocks(rng: np.random.Generator, num_targets: int, num_classes: int) -> Targets:
    """Label maps of 64 x 64 blocks of `num_targets` classes."""
    classes = np.full((BATCH, MAX_TARGETS), -1, np.int32)
    labels = np.zeros((BATCH, SIZE, SIZE), np.uint8)
    for image in range(BATCH):
        present = np.sort(rng.choice(num_classes, num_targets, replace=False))
        classes[image, :num_targets] = present
        labels[image] = np.kron(rng.choice(present, (SIZE // 64, SIZE // 64)), np.ones((64, 64), int))
    return Targets(jnp.asarray(labels), jnp.asarray(classes))


def main(targets_per_image: list[int]) -> None:
    """Print a table."""
    config = load_config("configs/ade20k.py:r50")
    model = build_model(config.model)
    configs = {False: config.loss, True: config.loss.copy_and_resolve_references()}
    configs[True].shared_points = True
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1, :64, :64])
    params, statistics = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def predict(params):
        return model.apply({"params": params, **statistics}, images, train=True, all_predictions="factored")

    def logits(params):
        predictions = predict(params)
        return predictions.class_logits, predictions.mask_logits

    @jax.jit
    def network(params, cotangents):
        values, backward = jax.vjp(logits, params)
        return values, backward(cotangents)[0]

    def total(predictions, targets, key, shared):
        return segmentation_loss(predictions, targets, key, configs[shared]).total

    @partial(jax.jit, static_argnums=3)
    def step(params, targets, key, shared):
        return jax.value_and_grad(lambda params: total(predict(params), targets, key, shared))(params)

    loss = jax.jit(jax.value_and_grad(total), static_argnums=3)
    key = jax.random.key(1)
    predictions = jax.jit(predict)(params)
    shapes = jax.eval_shape(logits, params)
    cotangents = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape, scale=1e-4), x.dtype), shapes)
    calls = {"network": lambda: network(params, cotangents)}
    for number in targets_per_image:
        targets = blocks(rng, number, config.model.num_classes)
        for shared in (False, True):
            calls["step", number, shared] = partial(step, params, targets, key, shared)
            calls["loss", number, shared] = partial(loss, predictions, targets, key, shared)
    seconds = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            if repeat > 0:  # the first compiles
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: np.median(times) for name, times in seconds.items()}

    print(f"{jax.devices()[0].device_kind}, median seconds of {REPEATS}")
    print(f"{'network, forward and backward':60} {medians['network']:7.2f}")
    for number, shared in itertools.product(targets_per_image, (False, True)):
        whole, loss_only = medians["step", number, shared], medians["loss", number, shared]
        points = f"{number} targets" + ", shared points" * shared
        share = f"   matching and loss: {100 * (1 - medians['network'] / whole):.1f}%"
        print(f"{f'step, {points}':60} {whole:7.2f}{share}")
        print(f"{f'masks, matching and loss only, {points}':60} {loss_only:7.2f}")


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [10, 30])
