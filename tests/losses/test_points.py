"""The random points at which masks are compared."""

import jax
import numpy as np

from fasseg_jax.losses.points import PointCounts, draw_loss_points, draw_matching_points


def test_points_depend_on_pair_and_fill_the_square():
    key = jax.random.key(0)
    draws = {}
    for pair in np.ndindex(2, 2, 2):
        oversampled, uniform = draw_loss_points(key, *pair, PointCounts(oversampled=600, important=0, uniform=200))
        assert oversampled.shape == (600, 2) and uniform.shape == (200, 2)
        draws[pair] = np.concatenate([oversampled, uniform])
    for pair in np.ndindex(2, 2):
        draws[pair] = np.asarray(draw_matching_points(key, *pair, 800))
    everything = np.concatenate(list(draws.values()))
    assert len(np.unique(everything, axis=0)) > 0.99 * len(everything)  # no two share their points
    counts, _, _ = np.histogram2d(*everything.T, bins=4, range=[[0, 1], [0, 1]])
    assert counts.sum() == len(everything)
    assert np.abs(counts / (len(everything) / 16) - 1).max() < 0.2  # 600 in each cell, 5 standard deviations
