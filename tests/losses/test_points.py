"""The random points at which masks are compared."""

import jax
import numpy as np
from scipy.stats import kstest

from fasseg_jax.config import load_config
from fasseg_jax.losses.points import PointCounts, draw_loss_points, draw_matching_points, shared_points


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


def test_each_shared_point_is_uniform_and_all_cover_the_square_evenly():
    config = load_config("configs/ade20k.py:r50").loss
    config.num_points = 400
    points = jax.tree.map(np.asarray, shared_points(jax.random.key(0), config, 500, 0))
    of_images = np.concatenate([points.matching, points.oversampled, points.uniform], axis=1)  # (500, 1700, 2)
    assert of_images.min() > 0 and of_images.max() < 1
    for index in (0, 399, 1234, 1699):
        for axis in range(2):
            assert kstest(of_images[:, index, axis], "uniform").pvalue > 0.001
    for part in (points.matching, points.oversampled, points.uniform):
        for own in part:
            assert len(np.unique(own, axis=0)) == len(own)
            counts, _, _ = np.histogram2d(*own.T, bins=4, range=[[0, 1], [0, 1]])
            assert np.abs(counts - len(own) / 16).max() < 6  # of independent points over 16, 28 and 9


def test_shared_points_depend_on_the_number_of_the_image_in_the_batch():
    config = load_config("configs/ade20k.py:r50").loss
    config.num_points = 40
    key = jax.random.key(3)
    everything = shared_points(key, config, 4, 0)
    for field in ("matching", "oversampled", "uniform"):
        expected = getattr(everything, field)
        np.testing.assert_array_equal(getattr(shared_points(key, config, 2, 2), field), expected[2:])
        assert not np.isclose(expected[0], expected[1]).all(axis=1).any()
