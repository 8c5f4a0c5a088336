"""Line charts: axes with round numbers, lines with gaps, a legend."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from fasseg_jax.visualization.text import FAINT, INK, PAPER, load_font, shorten

__all__ = ["LINE_COLORS", "Chart", "Line", "draw_charts"]

# Dark enough on white, and distinct for color-blind people (Okabe and Ito, 2008).
LINE_COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))
GRID = (228, 230, 234)
ZOOM = 2  # lines are drawn so much larger, and then shrunk, which smooths them
SIZE = (380, 780)  # (height, width) of a chart, in pixels
MARGIN = (58, 22, 44, 74)  # (top, right, bottom, left) around the lines, in pixels
TEXT = 15  # size of the letters, in pixels
SMOOTHED_FROM = 40  # points; of fewer, no mean is drawn
WINDOW = 1 / 25  # part of a line's points in a mean
MOST_DOTS = 60  # of a line
OUTLIERS = 2  # percent of the points that may lie above the chart, if a line is smoothed


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
      name: for the legend.
      x: in ascending order.
      y: NaN leaves a gap.
      color: RGB.
    """

    name: str
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    color: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
      title: above it.
      lines: in the order of the legend; those without a number are left out.
      smooth: draw noisy lines pale, and their running means over them.
      dots: mark each point.
      from_zero: begin at 0.
      absent: is written if no line has a number.
    """

    title: str
    lines: Sequence[Line]
    smooth: bool = False
    dots: bool = False
    from_zero: bool = False
    absent: str = "no numbers yet"


def draw_charts(charts: Sequence[Chart], columns: int, x_title: str) -> Image.Image:
    """Draw charts in rows, all with the same range of x."""
    height, width = SIZE
    rows = math.ceil(len(charts) / columns)
    values = np.concatenate([[0.0], *(line.x for chart in charts for line in chart.lines)])
    x_range = 0.0, max(float(values.max()), 1.0)
    picture = Image.new("RGB", (columns * width, rows * height), PAPER)
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        picture.paste(_draw_chart(chart, x_range, x_title), (column * width, row * height))
    return picture


def round_steps(low: float, high: float, number: int = 5) -> list[float]:
    """About `number` round values from `low` to `high`, which differ by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def running_mean(y: Float[np.ndarray, "n"], window: int) -> Float[np.ndarray, "n"]:
    """The mean of up to `window` points around each, of those that are numbers; NaN where the point is none."""
    known = np.isfinite(y)
    sums, counts = (np.concatenate([[0], np.cumsum(values)]) for values in (np.where(known, y, 0), known))
    first = np.maximum(np.arange(len(y)) - window // 2, 0)
    last = np.minimum(np.arange(len(y)) + window // 2 + 1, len(y))
    with np.errstate(invalid="ignore"):
        means = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return np.where(known, means, np.nan)


def _draw_chart(chart: Chart, x_range: tuple[float, float], x_title: str) -> Image.Image:
    height, width = SIZE
    top, right, bottom, left = MARGIN
    box = left, top, width - right, height - bottom
    lines = [line for line in chart.lines if np.isfinite(line.y).any()]
    y_range = _value_range(lines, chart)
    ticks = round_steps(*x_range), round_steps(*y_range) if lines else []
    picture = _draw_lines(chart, lines, box, x_range, y_range, ticks).resize((width, height), Image.Resampling.BOX)
    draw, font, small = ImageDraw.Draw(picture), load_font(TEXT), load_font(TEXT - 2)
    title = load_font(TEXT + 3)
    draw.text((left, 20), chart.title, INK, title, anchor="lm")
    _draw_legend(draw, lines if len(chart.lines) > 1 else [], (left, 44), box[2])
    for value in ticks[0]:
        draw.text((_position(value, x_range, box[0], box[2]), box[3] + 14), number_text(value), FAINT, small, "mm")
    draw.text((box[2], box[3] + 32), x_title, FAINT, small, anchor="rm")
    if not lines:
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), chart.absent, FAINT, font, anchor="mm")
        return picture
    for value in ticks[1]:
        draw.text((left - 10, _position(value, y_range, box[3], box[1])), number_text(value), FAINT, small, "rm")
    return picture


def _value_range(lines: Sequence[Line], chart: Chart) -> tuple[float, float]:
    """The range of y that shows the lines, a little larger."""
    values = [line.y[np.isfinite(line.y)] for line in lines]
    smooth = chart.smooth
    if not values:
        return 0.0, 1.0
    low = min(float(y.min()) for y in values)
    high = max(
        float(np.percentile(y, 100 - OUTLIERS) if smooth and len(y) >= SMOOTHED_FROM else y.max()) for y in values
    )
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if 0 <= low < 0.3 * high or (chart.from_zero and low >= 0) else low - margin), high + margin


def _draw_lines(
    chart: Chart,
    lines: Sequence[Line],
    box: tuple[int, int, int, int],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    ticks: tuple[list[float], list[float]],
) -> Image.Image:
    """Grid and lines, `ZOOM` times as large."""
    height, width = SIZE
    left, top, right, bottom = (ZOOM * side for side in box)
    picture = Image.new("RGB", (ZOOM * width, ZOOM * height), PAPER)
    draw = ImageDraw.Draw(picture)
    for value in ticks[1]:
        y = _position(value, y_range, bottom, top)
        draw.line((left, y, right, y), GRID, ZOOM)
    draw.line((left, bottom, right, bottom), FAINT, ZOOM)
    inside = Image.new("L", picture.size)
    ImageDraw.Draw(inside).rectangle((left - 4 * ZOOM, top - 4 * ZOOM, right + 4 * ZOOM, bottom), fill=255)
    drawn = picture.copy()
    for line in lines:
        x = _position(line.x, x_range, left, right)
        smoothed = chart.smooth and len(line.y) >= SMOOTHED_FROM
        y = running_mean(line.y, max(3, int(WINDOW * len(line.y)))) if smoothed else line.y
        if smoothed:
            _draw_line(drawn, x, _position(line.y, y_range, bottom, top), _pale(line.color), ZOOM, False)
        _draw_line(drawn, x, _position(y, y_range, bottom, top), line.color, 2 * ZOOM, chart.dots)
    picture.paste(drawn, (0, 0), inside)
    return picture


def _draw_line(picture: Image.Image, x: np.ndarray, y: np.ndarray, color: tuple, width: int, dots: bool) -> None:
    """Draw a line with gaps where y is no number; points alone become dots."""
    draw = ImageDraw.Draw(picture)
    runs = np.split(np.arange(len(y)), np.flatnonzero(np.diff(np.isfinite(y))) + 1)
    for run in runs:
        if not np.isfinite(y[run]).all():
            continue
        points = np.stack([x[run], y[run]], axis=1)
        if len(points) > 1:
            draw.line(points.ravel().tolist(), color, width, joint="curve")
        radius = (1.6 if (dots and len(points) <= MOST_DOTS) or len(points) == 1 else 0) * width
        for center_x, center_y in points.tolist() if radius else ():
            box = (center_x - radius, center_y - radius, center_x + radius, center_y + radius)
            draw.ellipse(box, color)


def _draw_legend(draw: ImageDraw.ImageDraw, lines: Sequence[Line], start: tuple[int, int], end: int) -> None:
    """Name the lines beside each other, in equal parts of the room if they need it."""
    x, y = start
    font = load_font(TEXT - 2)
    room = (end - x) / max(1, len(lines))
    for line in lines:
        name = shorten(line.name, font, room - 40)
        draw.line((x, y, x + 16, y), line.color, 3)
        draw.text((x + 22, y), name, INK, font, anchor="lm")
        x += 22 + int(font.getlength(name)) + 18


def number_text(value: float) -> str:
    """A number of an axis in few letters: 20k, 0.001, 1e-05."""
    if abs(value) >= 1000:
        for size, unit in ((1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.6g}{unit}"
    return f"{value:.6g}"


def _position(value, values: tuple[float, float], start: int, end: int):
    """Where a value lies between the pixels `start` and `end`."""
    return start + (value - values[0]) / (values[1] - values[0]) * (end - start)


def _pale(color: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple((channel + 2 * 255) // 3 for channel in color)
