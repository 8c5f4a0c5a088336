"""Random data: a batch for training, of images and blocks of classes, and arrays of given shapes."""

from typing import Any

import numpy as np

__all__ = ["NUM_CLASSES", "example_batch", "random_like"]

NUM_CLASSES = 150  # of ADE20K


def example_batch(
    size: int, batch: int, num_targets: int, num_classes: int = NUM_CLASSES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (B, H, W, 3) uint8, labels (B, H, W) uint8 of blocks of 32 x 32, and classes (B, targets) int32."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    classes = np.stack([np.sort(rng.choice(num_classes, num_targets, replace=False)) for _ in range(batch)])
    blocks = (size // 32) ** 2
    if num_targets > blocks:
        raise ValueError(f"{num_targets} targets, but an image of side {size} has only {blocks} blocks")
    labels = [
        np.kron(rng.permutation(np.resize(own, blocks)).reshape(size // 32, -1), np.ones((32, 32))) for own in classes
    ]
    return images, np.stack(labels).astype(np.uint8), classes.astype(np.int32)


def random_like(shapes: Any) -> Any:
    """Arrays like a tree of `shapes`, small and random: zeros can run faster. Nothing is compiled for them."""
    import jax  # a peer's process uses the batch without JAX

    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: (0.05 * rng.standard_normal(s.shape)).astype(s.dtype), shapes)
