"""Color jitter, compared with Python's colorsys and plain arithmetic."""

import colorsys

import numpy as np
import pytest

from fasseg_jax.data import color_jitter as color


def test_adjust_values_truncates_and_clips():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for factor, offset in [(1.0, 20.7), (1.0, -31.9), (1.37, 0.0), (0.5, 0.0)]:
        expected = [int(min(max(factor * value + offset, 0), 255)) for value in range(256)]
        np.testing.assert_array_equal(color.adjust_values(image, factor, offset).ravel(), expected)


@pytest.mark.parametrize(("degrees", "factor"), [(0, 1.4), (0, 0.6), (36, 1.0), (-36, 1.0), (14, 1.5), (-22, 0.5)])
def test_hue_and_saturation_equal_colorsys(degrees, factor):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3), np.uint8)
    image[0] = rng.integers(0, 256, (30, 1))  # grays
    image[1] = rng.choice([0, 255], (30, 3))  # the corners of the cube
    image[2, :, 1] = image[2, :, 0]  # two equal primaries
    expected = np.empty(image.shape)
    for pixel in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*image[pixel] / 255)
        rgb = colorsys.hsv_to_rgb((hue + degrees / 360) % 1, min(saturation * factor, 1), value)
        expected[pixel] = np.multiply(rgb, 255)
    result = color.adjust_hue_saturation(image, degrees, factor)
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result, expected, atol=0.501)  # rounded to the nearest


@pytest.mark.slow
def test_jitter_draws_each_change_half_of_the_time_in_both_orders(monkeypatch):
    calls = []

    def adjust_values(image, factor=1.0, offset=0.0):
        calls[-1].append(("brightness", offset) if factor == 1 else ("contrast", factor))
        return image + 1

    def adjust_hue_saturation(image, degrees, factor):
        calls[-1].append(("hue and saturation", (degrees, factor)))
        return image + 1

    monkeypatch.setattr(color, "adjust_values", adjust_values)
    monkeypatch.setattr(color, "adjust_hue_saturation", adjust_hue_saturation)
    number = 4000
    for seed in range(number):
        calls.append([])
        assert color.jitter_colors(0, np.random.default_rng(seed)) == len(calls[-1])  # each works on the last's result

    values = {name: [value for call in calls for n, value in call if n == name] for name, _ in sum(calls, [])}
    hues = [hue for hue, _ in values["hue and saturation"] if hue]
    saturations = [factor for _, factor in values["hue and saturation"] if factor != 1]
    for drawn, low, high in [
        (values["brightness"], -32, 32),
        (values["contrast"], 0.5, 1.5),
        (saturations, 0.5, 1.5),
        (hues, -36, 36),
    ]:
        assert low <= min(drawn) < low + 0.05 * (high - low) and high - 0.05 * (high - low) < max(drawn) <= high
        assert abs(np.mean(drawn) - (low + high) / 2) < 0.02 * (high - low)
        assert abs(len(drawn) / number - 0.5) < 0.04  # of hues, one in 37 is 0
    assert set(hues) == set(range(-36, 37, 2)) - {0}
    orders = [tuple(name for name, _ in call) for call in calls]
    assert all("brightness" not in order[1:] for order in orders)
    both = [order for order in orders if {"contrast", "hue and saturation"} <= set(order)]
    first = np.mean([order.index("contrast") < order.index("hue and saturation") for order in both])
    assert abs(first - 0.5) < 0.05
