"""Sampling and the choice of points against plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from fasseg_jax.ops import reference, selection, selection_tpu
from fasseg_jax.ops.point_sampling import (
    class_masks_by_gathers,
    class_masks_by_matmuls,
    pack_labels,
    sample_by_gathers,
    sample_by_matmuls,
    sample_class_masks,
    sample_labels,
    sample_masks,
    sample_masks_at_shared_points,
    spread_by_matmul,
    spread_by_scatter,
    spread_on_masks,
)
from fasseg_jax.ops.selection import (
    compact,
    compact_by_gathers,
    compact_by_kernel,
    compact_by_moves,
    counts_below,
    most_uncertain,
    packed_counts_below,
    uncertainty_weights,
    value_of_rank,
)
from tests.helpers.lowering import lowered_text


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """One sample, as the sum over all pixels of what a tent around the point leaves of each; zero outside."""
    h, w = image.shape

    def tent(position, size):
        return np.maximum(0, 1 - np.abs(position * size - 0.5 - np.arange(size)))

    return float(tent(y, h) @ image @ tent(x, w))


@pytest.fixture
def points() -> np.ndarray:
    """(2, 60, 2), with the corners and edges of the map among them."""
    points = np.random.default_rng(0).random((2, 60, 2)).astype(np.float32)
    points[0, :6] = [(0, 0), (1, 1), (0, 1), (1, 0), (0.5, 0), (1, 0.25)]
    points[1, :3] = [(0.5 / 7, 0.5 / 5), (0.5, 0.5), (6.5 / 7, 4.5 / 5)]  # pixel centers
    return points


@pytest.mark.parametrize("sample", [reference.sample_masks, sample_masks, sample_by_gathers, sample_by_matmuls])
def test_masks(points, sample):
    masks = np.random.default_rng(1).normal(size=(2, 5, 7)).astype(np.float32)
    expected = [[bilinear(mask, *point) for point in own] for mask, own in zip(masks, points, strict=True)]
    bound = 2**-16 * np.abs(masks).max() if sample is sample_by_matmuls else 2e-6
    np.testing.assert_allclose(jax.jit(sample)(masks, points), expected, rtol=0, atol=bound)


def test_masks_at_shared_points(points):
    masks = np.random.default_rng(2).normal(size=(3, 5, 7)).astype(np.float32)
    expected = [[bilinear(mask, *point) for mask in masks] for point in points[0]]
    np.testing.assert_allclose(
        jax.jit(sample_masks_at_shared_points)(masks.transpose(1, 2, 0), points[0]), expected, atol=2e-6
    )


@pytest.mark.parametrize("spread", [spread_on_masks, spread_by_scatter, spread_by_matmul])
def test_values_are_spread_by_the_transpose(points, spread):
    values = np.random.default_rng(3).normal(size=(2, 60)).astype(np.float32)
    masks = jax.jit(spread, static_argnums=2)(values, points, (5, 7))
    for n, row, column in np.ndindex(masks.shape):
        unit = np.zeros((5, 7))
        unit[row, column] = 1
        expected = sum(value * bilinear(unit, *point) for value, point in zip(values[n], points[n], strict=True))
        assert masks[n, row, column] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_labels(points, dtype):
    largest = np.iinfo(dtype).max
    values = [0, 1, largest, 255, *([-1] if np.iinfo(dtype).min < 0 else [])]
    labels = np.random.default_rng(4).choice(values, (3, 5, 7)).astype(dtype)
    image = np.array([2, 0])
    corners = jax.jit(lambda *arguments: sample_labels(pack_labels(arguments[0]), *arguments[1:]))(
        labels, image, points
    )
    for c in values:
        expected = [[bilinear(labels[i] == c, *point) for point in own] for i, own in zip(image, points, strict=True)]
        np.testing.assert_allclose(sum(weight * (label == c) for label, weight in corners), expected, atol=2e-6)


@pytest.mark.parametrize("sample", [sample_class_masks, class_masks_by_gathers, class_masks_by_matmuls])
@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_masks_of_classes(points, dtype, size, sample):
    largest = np.iinfo(dtype).max
    labels = np.random.default_rng(4).choice([0, 1, largest], (3, *size)).astype(dtype)
    image, classes = np.array([2, 0]), np.array([1, largest], np.int32)
    found = jax.jit(lambda labels, *others: sample(pack_labels(labels), *others))(labels, image, classes, points)
    masks = labels[image] == classes[:, None, None]
    expected = [[bilinear(mask, *point) for point in own] for mask, own in zip(masks, points, strict=True)]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_both_ways_to_sample_a_class_are_the_same():
    """At the sizes of a training, where the numbers of the matmul are rounded if they do not fit."""
    rng = np.random.default_rng(5)
    labels = pack_labels(jnp.asarray(rng.integers(0, 2, (2, 512, 300), dtype=np.uint8)))
    arguments = labels, jnp.array([1, 0]), jnp.array([1, 0]), jnp.asarray(rng.random((2, 3000, 2)), jnp.float32)
    expected = jax.jit(class_masks_by_gathers)(*arguments)
    np.testing.assert_array_equal(jax.jit(class_masks_by_matmuls)(*arguments), expected)


def test_tpus_sample_by_one_kernel_and_gather_nothing():
    """At sizes that fill no registers."""
    labels = pack_labels(jnp.zeros((2, 352, 500), jnp.uint8))
    image, points = jax.ShapeDtypeStruct((16,), jnp.int32), jax.ShapeDtypeStruct((16, 12500, 2), jnp.float32)
    masks, values = jax.ShapeDtypeStruct((16, 88, 125), jnp.float32), jax.ShapeDtypeStruct((16, 12500), jnp.float32)

    def lowered(function, *arguments):
        return lowered_text(function, *arguments, platform="tpu")

    of_classes = lowered(functools.partial(sample_class_masks, labels), image, image, points)
    of_masks = lowered(sample_masks, masks, points)
    spread = lowered(functools.partial(spread_on_masks, size=(88, 125)), values, points)
    assert [text.count("tpu_custom_call") for text in (of_classes, of_masks, spread)] == [1, 1, 0]
    assert "scatter" not in spread and "gather" not in of_masks + spread
    rounded = lowered(functools.partial(spread_on_masks, size=(88, 125), precision="high"), values, points)
    assert spread.count("precision = [HIGH, HIGH]") == 1 and "HIGH" not in rounded


@pytest.mark.parametrize("count", [1, 7, 100, 400])
def test_most_uncertain(count):
    rng = np.random.default_rng(count)
    logits = np.stack(
        [
            rng.normal(size=400),
            rng.normal(size=400) * 1e-30,
            rng.integers(-3, 4, 400),  # many ties
            np.zeros(400),
            np.full(400, -2.5),
            np.where(rng.random(400) < 0.5, np.nan, rng.normal(size=400)),
            np.where(rng.random(400) < 0.5, -np.inf, 1e30),
        ]
    ).astype(np.float32)
    chosen = np.asarray(jax.jit(most_uncertain, static_argnums=1)(logits, count))
    expected = np.sort(np.argsort(np.abs(logits), axis=1, kind="stable")[:, :count])
    np.testing.assert_array_equal(np.nonzero(chosen)[1].reshape(-1, count), expected)
    np.testing.assert_array_equal(reference.most_uncertain(jnp.asarray(logits), count), expected)

    weights = np.asarray(jax.jit(uncertainty_weights, static_argnums=1)(logits, count))
    magnitudes = np.where(np.isnan(logits), np.finfo(np.float64).max, np.abs(logits.astype(np.float64)))
    for row, found in zip(magnitudes, weights, strict=True):
        threshold = np.sort(row)[count - 1]
        shared = (count - (row < threshold).sum()) / (row == threshold).sum()
        np.testing.assert_allclose(
            found, np.where(row < threshold, 1, np.where(row == threshold, shared, 0)), rtol=1e-6
        )


@pytest.mark.parametrize("method", [compact, compact_by_gathers, compact_by_moves, compact_by_kernel])
@pytest.mark.parametrize(("places", "count"), [(1, 1), (5, 1), (5, 5), (64, 17), (1000, 250), (1025, 1)])
def test_what_is_chosen_lies_side_by_side(places, count, method):
    """At random places, at the ends, in one piece, and every second one as far as that goes."""
    rng = np.random.default_rng(places + count)
    begin, end = np.arange(count), np.arange(places - count, places)
    pieces = np.concatenate([begin[: count // 2], end[count // 2 :]])
    spread = np.arange(count) * (places // count)
    rows = [np.sort(rng.permutation(places)[:count]) for _ in range(20)] + [begin, end, pieces, spread]
    chosen = np.zeros((len(rows), places), bool)
    np.put_along_axis(chosen, np.stack(rows), True, axis=1)
    arrays = [rng.normal(size=chosen.shape).astype(np.float32) for _ in range(2)]
    arrays[0][:, ::3] = np.nan
    found = jax.jit(functools.partial(method, count=count))(jnp.asarray(chosen), [jnp.asarray(x) for x in arrays])
    for values, compacted in zip(arrays, found, strict=True):
        np.testing.assert_array_equal(compacted, values[chosen].reshape(-1, count))


@pytest.mark.parametrize(("places", "kernels"), [(37632, 1), (75264, 0)])
def test_tpus_move_what_is_chosen(places, kernels):
    """By one kernel, if it fits."""
    chosen, values = (jax.ShapeDtypeStruct((16, places), dtype) for dtype in (jnp.bool_, jnp.float32))
    text = lowered_text(functools.partial(compact, count=9408), chosen, [values] * 3, platform="tpu")
    assert text.count("tpu_custom_call") == kernels
    for name in ("gather", "scatter", "sort"):
        assert f'"stablehlo.{name}"' not in text and f"stablehlo.{name} " not in text


def test_no_point_is_wanted():
    assert not uncertainty_weights(jnp.array([[3.0, -0.5, 2.0]]), 0).any()


def test_example_of_most_uncertain():
    chosen = most_uncertain(jnp.array([[3.0, -0.5, 2.0, 0.5, -0.5]]), 2)
    np.testing.assert_array_equal(chosen, [[False, True, False, True, False]])
    weights = uncertainty_weights(jnp.array([[3.0, -0.5, 2.0, 0.0, 0.5]]), 2)
    np.testing.assert_array_equal(weights, [[0, 0.5, 0, 1, 0.5]])


def test_largest():
    scores = np.random.default_rng(0).integers(0, 9, (3, 40)).astype(np.float32)  # many ties
    expected = np.argsort(-scores, axis=1, kind="stable")
    for module in (selection, reference):
        np.testing.assert_array_equal(jax.jit(module.top_indices, static_argnums=1)(scores, 7), expected[:, :7])
        for axis in (0, 1, -1):
            np.testing.assert_array_equal(module.first_argmax(jnp.asarray(scores), axis), scores.argmax(axis))


@pytest.mark.parametrize(("digit", "count"), [(1, counts_below), (2, packed_counts_below), (4, packed_counts_below)])
@pytest.mark.parametrize("rank", [1, 57, 300])
def test_value_of_rank(digit, count, rank):
    rng = np.random.default_rng(rank)
    rows = np.stack([rng.integers(0, 2**32, 300), rng.integers(0, 5, 300), rng.integers(2**31 - 3, 2**31 + 3, 300)])
    found = jax.jit(value_of_rank, static_argnums=(1, 2, 3))(rows.astype(np.uint32), rank, digit, count)
    np.testing.assert_array_equal(found[:, 0], np.sort(rows)[:, rank - 1])


@pytest.mark.parametrize(("shape", "rank"), [((3, 300), 57), ((8, 128), 1), ((17, 1000), 1000)])
def test_value_of_rank_by_the_kernel_for_tpus(shape, rank):
    rng = np.random.default_rng(rank)
    rows = rng.integers(0, 2**31, shape)
    rows[0] = rng.integers(0, 5, shape[1])
    rows[1, 3:] = 2**31 - 1
    found = jax.jit(selection_tpu.value_of_rank, static_argnums=1)(rows.astype(np.uint32), rank)
    np.testing.assert_array_equal(found[:, 0], np.sort(rows)[:, rank - 1])

    def threshold(logits):
        return uncertainty_weights(logits, rank)

    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    for platform, calls in (("tpu", 1), ("cpu", 0)):
        assert lowered_text(threshold, logits, platform=platform).count("tpu_custom_call") == calls


def test_a_wrong_shape_is_caught():
    """While tests run, every call is checked against its annotation: two masks cannot be sampled at three's points."""
    with pytest.raises(TypeCheckError, match="Float.*N P 2"):
        sample_masks(jnp.zeros((2, 5, 7)), jnp.zeros((3, 60, 2)))
