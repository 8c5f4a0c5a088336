"""The confusion matrix as a picture: what the pixels of each true class were taken for.

Right pixels are blue, confused ones orange; opacity grows with the square root of the share, so that a confusion of 1%
still shows.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.text import FAINT, INK, PAPER, load_font, shorten

__all__ = ["confusion_cells", "draw_confusion", "row_shares"]

RIGHT, WRONG, ABSENT = (37, 99, 235), (234, 88, 12), (120, 124, 132, 30)
TARGET_SIDE = 900  # pixels, of the matrix, as far as the limits of a cell's side allow
MIN_CELL, MAX_CELL = 12, 110  # pixels; the smallest has room for a line of its class's name
MIN_CELL_WITH_NUMBER = 36
MAX_LETTERS = 16  # pixels, of the names' letters
NAME_WIDTH = 13  # of a name at most, in sizes of its letters
GRID = (225, 227, 231)
LEGEND_SHARES = (0.01, 0.05, 0.2, 0.5, 1.0)
MARGIN = 24


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Each row of (K, K) counts in shares of its sum; NaN in rows of classes that the truth lacks."""
    with np.errstate(invalid="ignore"):
        return confusion / confusion.sum(axis=1, keepdims=True)


def confusion_cells(confusion: np.ndarray) -> np.ndarray:
    """One pixel for each cell, uint8 RGBA (K, K, 4), for any background; classes that the truth lacks are grey."""
    shares = row_shares(confusion)
    cells = np.empty((*confusion.shape, 4), np.uint8)
    cells[..., :3] = np.where(np.eye(len(confusion), dtype=bool)[..., None], RIGHT, WRONG)
    cells[..., 3] = np.round(255 * np.sqrt(np.nan_to_num(shares)))
    cells[np.isnan(shares[:, 0])] = ABSENT
    return cells


def draw_confusion(confusion: np.ndarray, classes: ClassTable) -> Image.Image:
    """Draw a confusion matrix with the names of its classes; with few classes, the shares in percent too.

    Args:
      confusion: (K, K) counts, a row for each true class.
      classes: names of the K classes.

    Returns:
      An RGB picture.
    """
    num_classes = len(classes)
    cell = min(max(TARGET_SIDE // num_classes, MIN_CELL), MAX_CELL)
    side = cell * num_classes
    font = load_font(min(cell - 2, MAX_LETTERS))
    room = NAME_WIDTH * font.size
    names = [shorten(name, font, room) for name in classes.names]
    left = top = round(2.5 * MARGIN + max(font.getlength(name) for name in names))
    legend = 4 * MARGIN
    picture = Image.new("RGB", (left + max(side, 480) + MARGIN, top + side + legend), PAPER)
    cells = Image.fromarray(confusion_cells(confusion)).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(cells, (left, top), cells)
    draw = ImageDraw.Draw(picture)
    _draw_grid(draw, left, top, cell, num_classes)
    if cell >= MIN_CELL_WITH_NUMBER:
        _draw_numbers(draw, row_shares(confusion), left, top, cell)
    upright = Image.new("L", (top, side))  # the columns' names, drawn along rows and then turned to read upwards
    pen = ImageDraw.Draw(upright)
    for number, name in enumerate(names):
        middle = (number + 0.5) * cell
        draw.text((left - 8, top + middle), name, INK, font, anchor="rm")
        pen.text((8, middle), name, 255, font, anchor="lm")
    picture.paste(INK, (left, 0), upright.transpose(Image.Transpose.ROTATE_90))
    letters = load_font(MAX_LETTERS - 2)
    draw.text((MARGIN, MARGIN), "rows: truth\ncolumns: prediction", FAINT, letters, spacing=6)
    _draw_legend(draw, left, top + side + 1.5 * MARGIN, letters)
    return picture


def _draw_grid(draw: ImageDraw.ImageDraw, left: int, top: int, cell: int, num_classes: int) -> None:
    """Thin lines between the cells; with many classes only each tenth, for the eye to count by."""
    side = cell * num_classes
    for number in range(0, num_classes + 1, 1 if cell >= MIN_CELL_WITH_NUMBER else 10):
        draw.line((left + number * cell, top, left + number * cell, top + side), GRID)
        draw.line((left, top + number * cell, left + side, top + number * cell), GRID)
    draw.rectangle((left, top, left + side, top + side), outline=FAINT)


def _draw_numbers(draw: ImageDraw.ImageDraw, shares: np.ndarray, left: int, top: int, cell: int) -> None:
    """Percents in the cells, where they round to 1 or more."""
    font = load_font(min(round(0.4 * cell), 22))
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        centre = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
        draw.text(centre, f"{100 * share:.0f}", PAPER if share > 0.45 else INK, font, anchor="mm")


def _draw_legend(draw: ImageDraw.ImageDraw, x: float, y: float, font: ImageFont.FreeTypeFont) -> None:
    """Squares of both colours for a few shares, with these in words."""
    for label, colour in (("right", RIGHT), ("confused", WRONG)):
        draw.text((x, y + 8), label, INK, font, anchor="lm")
        for number, share in enumerate(LEGEND_SHARES):
            opacity = share**0.5
            blended = tuple(round(opacity * a + (1 - opacity) * b) for a, b in zip(colour, PAPER, strict=True))
            box = (x + 80 + 64 * number, y, x + 80 + 64 * number + 56, y + 16)
            draw.rectangle(box, blended)
        y += 22
    for number, share in enumerate(LEGEND_SHARES):
        draw.text((x + 80 + 64 * number + 28, y + 8), f"{100 * share:.0f}%", FAINT, font, anchor="mm")
