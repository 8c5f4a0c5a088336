"""The generated data set: outlines compared with polygons, ignored borders, seeds."""

import numpy as np
import pytest

from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource, signed_distance

ROOT_3 = np.sqrt(3)


def source(split="training", length=40, size=(96, 128), ignore_label=255):
    return ShapesSource(split, length, size, load_classes("shapes"), ignore_label)


def polygon(name: str, radius: float) -> np.ndarray:
    """Vertices (u, v) in order."""
    if name == "square":
        return 0.75 * radius * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if name == "triangle":
        return 0.5 * radius * np.array([(0, -2), (ROOT_3, 1), (-ROOT_3, 1)])
    quarter = np.array([(0.33, 1), (0.33, 0.33), (1, 0.33)])  # of the cross, clockwise
    turn = np.array([[0, -1], [1, 0]])
    return radius * np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def polygon_distance(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Signed distance to the edges, negative inside by the crossing rule."""
    distance = np.full(len(points), np.inf)
    inside = np.zeros(len(points), bool)
    for a, b in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        along = np.clip((points - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
        distance = np.minimum(distance, np.linalg.norm(points - a - along[:, None] * (b - a), axis=1))
        crosses = (a[1] > points[:, 1]) != (b[1] > points[:, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (points[:, 0] < a[0] + (points[:, 1] - a[1]) * (b[0] - a[0]) / (b[1] - a[1]))
    return np.where(inside, -distance, distance)


@pytest.mark.parametrize("name", ["square", "triangle", "cross"])
def test_polygons(name):
    points = np.random.default_rng(0).uniform(-30, 30, (4000, 2))
    expected = polygon_distance(points, polygon(name, 20))
    got = signed_distance(name, points[:, 0], points[:, 1], 20)
    np.testing.assert_array_equal(got < 0, expected < 0)
    assert (np.abs(got) <= np.abs(expected) + 1e-9).all()
    near = np.abs(expected) < 0.5
    assert np.mean(np.abs(got - expected)[near] < 1e-9) > 0.9  # except near corners


def test_round_shapes():
    radii = np.linspace(0, 30, 301)
    angles = np.linspace(0, 6, 301)
    u, v = radii * np.cos(angles), radii * np.sin(angles)
    np.testing.assert_allclose(signed_distance("disc", u, v, 20), radii - 18, atol=1e-9)
    inside = signed_distance("ring", u, v, 20) < 0
    np.testing.assert_array_equal(inside, (radii > 10) & (radii < 20))


def test_classes_are_separated_by_ignored_pixels():
    shares = []
    for index in range(10):
        labels = source()[index].labels
        for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert ((first == second) | (first == 255) | (second == 255)).all()
        shares.append(np.mean(labels == 255))
    assert 0.01 < np.mean(shares) < 0.15


def test_every_class_occurs_and_no_other():
    labels = np.concatenate([source()[index].labels.ravel() for index in range(40)])
    counts = np.bincount(labels, minlength=256)
    assert counts[:6].min() > 0.005 * labels.size
    assert counts[6:255].sum() == 0


def test_samples_depend_on_split_and_index_only():
    first, again = source()[3], source(length=1000)[3]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.image.shape == (96, 128, 3) and first.image.dtype == np.uint8
    pictures = [source(split)[index].image.tobytes() for split in ("training", "validation") for index in range(20)]
    assert len(set(pictures)) == 40
    assert source()[3].name != source("validation")[3].name


def test_wide_ignore_label():
    labels, wide = source()[0].labels, source(ignore_label=1000)[0].labels
    assert labels.dtype == np.uint8 and wide.dtype == np.uint16
    np.testing.assert_array_equal(np.where(wide == 1000, 255, wide), labels)
