"""Charts: lines lie where the numbers say, gaps stay gaps, axes have round numbers."""

import numpy as np
import pytest

from fasseg_jax.visualization.chart import (
    LINE_COLORS,
    MARGIN,
    SIZE,
    Chart,
    Line,
    draw_charts,
    number_text,
    round_steps,
    running_mean,
)

RED = (200, 0, 0)
TOP, RIGHT, BOTTOM, LEFT = MARGIN
HEIGHT, WIDTH = SIZE


def chart_of(*values, **options):
    x = np.arange(len(values), dtype=float)
    return Chart("Title", [Line("values", x, np.array(values, float), RED)], **options)


def red_pixels(chart):
    """Positions (y, x) of pixels in the line's color."""
    picture = np.asarray(draw_charts([chart], 1, "step"))
    assert picture.shape == (*SIZE, 3)
    return np.argwhere((picture == RED).all(-1))


def test_a_line_lies_where_its_numbers_say():
    """From 0 to 10.5, a twentieth more than the largest."""
    found = red_pixels(chart_of(0, 10, 5))
    for x, value in ((0, 0), (0.5, 5), (1, 10), (1.5, 7.5), (2, 5)):
        column = LEFT + x / 2 * (WIDTH - LEFT - RIGHT)
        row = HEIGHT - BOTTOM - value / 10.5 * (HEIGHT - TOP - BOTTOM)
        assert np.abs(found - (row, column)).max(axis=1).min() <= 2, (x, value)


def test_gaps_and_points_alone():
    rows, columns = red_pixels(chart_of(1, 1, np.nan, np.nan, 1, np.nan, 2, 2)).T
    unit = (WIDTH - LEFT - RIGHT) / 7
    position = (columns - LEFT) / unit
    for low, high, drawn in ((0.1, 0.9, True), (1.1, 3.9, False), (4.1, 5.9, False), (6.1, 6.9, True)):
        assert ((position > low) & (position < high)).any() == drawn
    assert (np.abs(position - 4) < 0.05).any()  # a dot


@pytest.mark.parametrize("values", [(), (np.nan,), (3,), (3, 3, 3), (0, 0), (-1, -5), (1e-9, 2e-9), (1e12, -1e12)])
def test_any_numbers_can_be_drawn(values):
    found = red_pixels(chart_of(*values))
    assert bool(len(found)) == bool(np.isfinite(values).any())


def test_noise_is_pale_and_outliers_leave_the_chart():
    values = [1, 2] * 200
    values[100] = 1e6
    rows, _ = red_pixels(chart_of(*values, smooth=True)).T
    assert np.ptp(rows) > 0 and np.median(rows) < HEIGHT - BOTTOM - 0.4 * (HEIGHT - TOP - BOTTOM)


def test_running_mean():
    rng = np.random.default_rng(0)
    y = rng.normal(size=37)
    y[[0, 5, 6, 7, 20]] = np.nan
    for window in (1, 3, 10):
        expected = [
            np.nan if np.isnan(y[i]) else np.nanmean(y[max(0, i - window // 2) : i + window // 2 + 1])
            for i in range(37)
        ]
        np.testing.assert_allclose(running_mean(y, window), expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 160_000, [0, 50_000, 100_000, 150_000]),
        (0.1, 0.34, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (-3, 3, [-2, 0, 2]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
    ],
)
def test_axes_have_round_numbers(low, high, expected):
    np.testing.assert_allclose(round_steps(low, high), expected, atol=1e-12)


def test_numbers_are_short():
    assert [number_text(value) for value in (0, 20_000, 1500, 2e6, 0.15, 1e-4, 5e-5)] == [
        *("0", "20k", "1.5k", "2M", "0.15", "0.0001", "5e-05"),
    ]


def test_charts_lie_in_rows_and_name_their_lines():
    x = np.arange(3.0)
    lines = [Line(name, x, x + number, LINE_COLORS[number]) for number, name in enumerate(("one", "two"))]
    picture = np.asarray(draw_charts([Chart("A", lines), Chart("B", lines[:1]), Chart("C", [])], 2, "step"))
    assert picture.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    legend = picture[34:54, LEFT : WIDTH - RIGHT]
    assert all((legend == color).all(-1).any() for color in LINE_COLORS[:2])
    one_line = picture[34:54, WIDTH + LEFT : -RIGHT]
    assert (one_line == 255).all()
