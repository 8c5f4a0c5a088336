"""Share of matching and loss in a training step: FASeg R50, 512 x 512, batch 2, float32.

    python benchmarks/loss.py [TARGETS_PER_IMAGE ...]

Compares forward and backward pass of the network, for given gradients of its predictions, with the loss and these
gradients. The number of targets (10 unless others are named) is of each image, of at most 40.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.config import load_config
from fasseg_jax.loss import segmentation_loss
from fasseg_jax.matching import Targets, match
from fasseg_jax.model import build_model

BATCH, SIZE, MAX_TARGETS = 2, 512, 40


def measure(function, *arguments, repeats: int = 3) -> tuple[float, float]:
    """Least wall and process seconds of a call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return tuple(np.min(times, axis=0))


def blocks(rng: np.random.Generator, num_targets: int, num_classes: int) -> Targets:
    """Label maps of 64 x 64 blocks of `num_targets` classes."""
    classes = np.full((BATCH, MAX_TARGETS), -1, np.int32)
    labels = np.zeros((BATCH, SIZE, SIZE), np.int32)
    for image in range(BATCH):
        present = np.sort(rng.choice(num_classes, num_targets, replace=False))
        classes[image, :num_targets] = present
        labels[image] = np.kron(rng.choice(present, (SIZE // 64, SIZE // 64)), np.ones((64, 64), int))
    return Targets(jnp.asarray(labels), jnp.asarray(classes))


def main(targets_per_image: list[int]) -> None:
    """Prints a table."""
    config = load_config("configs/ade20k.py:r50")
    model = build_model(config.model)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(BATCH, SIZE, SIZE, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1, :64, :64])
    params, statistics = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def predict(params):
        return model.apply({"params": params, **statistics}, images, train=True, all_predictions=True)

    def network(params, cotangents):
        predictions, backward = jax.vjp(predict, params)
        return predictions, backward(cotangents)[0]

    @jax.jit
    def loss(predictions, targets, key):
        total = lambda predictions: segmentation_loss(predictions, targets, key, config.loss).total
        return jax.value_and_grad(total)(predictions)

    @jax.jit
    def matching(predictions, targets, points):
        return match(predictions, targets, points, config.loss)

    key = jax.random.key(1)
    predictions = jax.jit(predict)(params)
    points = jax.random.uniform(key, (*predictions.class_logits.shape[:2], config.loss.num_points, 2))
    _, cotangents = loss(predictions, blocks(rng, targets_per_image[0], config.model.num_classes), key)
    network_times = measure(jax.jit(network), params, cotangents)

    print(f"{jax.devices()[0].device_kind}, seconds: wall (process)")
    print(f"{'network, forward and backward':40} {network_times[0]:7.2f} ({network_times[1]:.2f})")
    for num_targets in targets_per_image:
        targets = blocks(rng, num_targets, config.model.num_classes)
        loss_times = measure(loss, predictions, targets, key)
        matching_times = measure(matching, predictions, targets, points)
        shares = [100 * a / (a + b) for a, b in zip(loss_times, network_times, strict=True)]
        print(f"{f'matching, {num_targets} targets per image':40} {matching_times[0]:7.2f} ({matching_times[1]:.2f})")
        print(
            f"{f'matching and loss, {num_targets} targets per image':40} {loss_times[0]:7.2f} ({loss_times[1]:.2f})"
            f"   {shares[0]:.1f}% ({shares[1]:.1f}%) of a step"
        )


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [10])
