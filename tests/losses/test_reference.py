"""The plain version itself, compared with its formulas in float64, written out in numpy."""

import numpy as np

from fasseg_jax.losses import reference


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """One sample from the four pixels around a point; zero outside."""
    padded = np.pad(image.astype(np.float64), 1)
    x, y = x * image.shape[1] + 0.5, y * image.shape[0] + 0.5  # of `padded`, in pixels, centers at whole numbers
    column, row = int(x), int(y)
    right, down = x - column, y - row
    upper = (1 - right) * padded[row, column] + right * padded[row, column + 1]
    lower = (1 - right) * padded[row + 1, column] + right * padded[row + 1, column + 1]
    return (1 - down) * upper + down * lower


def test_mask_losses():
    rng = np.random.default_rng(0)
    mask, truth = rng.normal(size=(5, 7)).astype(np.float32), (rng.random((20, 28)) < 0.4).astype(np.float32)
    points = rng.random((30, 2)).astype(np.float32)
    points[:4] = [(0, 0), (0.999, 0.999), (0, 0.5), (0.5 / 7, 0.5 / 5)]
    x, g = (np.array([bilinear(image, *point) for point in points]) for image in (mask, truth))
    p = 1 / (1 + np.exp(-x))
    cross_entropy, dice = reference.mask_losses(mask, truth, points)
    np.testing.assert_allclose(cross_entropy, -np.mean(g * np.log(p) + (1 - g) * np.log(1 - p)), rtol=1e-5)
    np.testing.assert_allclose(dice, 1 - (2 * np.sum(p * g) + 1) / (np.sum(p) + np.sum(g) + 1), rtol=1e-5)


def test_matching_cost_is_the_weighted_sum_of_three():
    from tests.losses.test_loss import loss_config

    rng = np.random.default_rng(1)
    logits, mask = rng.normal(size=4).astype(np.float32), rng.normal(size=(5, 7)).astype(np.float32)
    truth, points = np.ones((10, 14), np.float32), rng.random((30, 2)).astype(np.float32)
    config = loss_config(30)
    config.class_weight, config.mask_weight, config.dice_weight = 100.0, 10.0, 1.0
    cross_entropy, dice = reference.mask_losses(mask, truth, points)
    probability = np.exp(logits[2]) / np.exp(logits).sum()
    found = reference.matching_cost(logits, mask, 2, truth, points, config)
    np.testing.assert_allclose(found, -100 * probability + 10 * cross_entropy + dice, rtol=1e-5)
