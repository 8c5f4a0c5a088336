"""The confusion matrix as an image: which classes the pixels of each true class were predicted as.

Right pixels are blue, wrong ones orange. Opacity grows with the square root of the share, so that a confusion of 1% can
still be seen.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.text import FAINT, INK, PAPER, load_font, shorten

__all__ = ["confusion_cells", "draw_confusion", "row_shares"]

RIGHT = (37, 99, 235)
WRONG = (234, 88, 12)
ABSENT = (120, 124, 132, 30)  # rows of classes that the ground truth lacks, RGBA
GRID = (225, 227, 231)
LEGEND_SHARES = (0.01, 0.05, 0.2, 0.5, 1.0)
# Lengths in pixels.
TARGET_SIDE = 900  # of the matrix, within the limits of a cell's side
MIN_CELL, MAX_CELL = 12, 110  # side of a cell; the smallest leaves room for a line with its class's name
MIN_CELL_WITH_NUMBER = 36
MAX_LETTERS = 16  # of the names
MARGIN = 24
NAME_WIDTH = 13  # of a name at most, as a multiple of the size of its letters


def row_shares(confusion: np.ndarray) -> np.ndarray:
    """Divide each row of (K, K) counts by its sum; rows of classes that the ground truth lacks are NaN."""
    with np.errstate(invalid="ignore"):
        return confusion / confusion.sum(axis=1, keepdims=True)


def confusion_cells(confusion: np.ndarray) -> np.ndarray:
    """Color each cell, uint8 RGBA (K, K, 4), for any background; classes that the ground truth lacks are gray."""
    shares = row_shares(confusion)
    cells = np.empty((*confusion.shape, 4), np.uint8)
    cells[..., :3] = np.where(np.eye(len(confusion), dtype=bool)[..., None], RIGHT, WRONG)
    cells[..., 3] = np.round(255 * np.sqrt(np.nan_to_num(shares)))
    cells[np.isnan(shares[:, 0])] = ABSENT
    return cells


def draw_confusion(confusion: np.ndarray, classes: ClassTable) -> Image.Image:
    """Draw a confusion matrix with the names of its classes, and the shares in percent if the classes are few.

    Args:
      confusion: (K, K) counts, a row for each true class.
      classes: names of the K classes.

    Returns:
      An RGB image.
    """
    num_classes = len(classes)
    cell = min(max(TARGET_SIDE // num_classes, MIN_CELL), MAX_CELL)
    side = cell * num_classes
    font = load_font(min(cell - 2, MAX_LETTERS))
    names = [shorten(name, font, NAME_WIDTH * font.size) for name in classes.names]
    left = top = round(2.5 * MARGIN + max(font.getlength(name) for name in names))
    picture = Image.new("RGB", (left + max(side, 480) + MARGIN, top + side + 4 * MARGIN), PAPER)
    cells = Image.fromarray(confusion_cells(confusion)).resize((side, side), Image.Resampling.NEAREST)
    picture.paste(cells, (left, top), cells)
    draw = ImageDraw.Draw(picture)
    _draw_grid(draw, left, top, cell, num_classes)
    if cell >= MIN_CELL_WITH_NUMBER:
        _draw_numbers(draw, row_shares(confusion), left, top, cell)
    column_names = Image.new("L", (top, side))  # drawn along rows, then turned to read upwards
    column_draw = ImageDraw.Draw(column_names)
    for class_id, name in enumerate(names):
        middle = (class_id + 0.5) * cell
        draw.text((left - 8, top + middle), name, INK, font, anchor="rm")
        column_draw.text((8, middle), name, 255, font, anchor="lm")
    picture.paste(INK, (left, 0), column_names.transpose(Image.Transpose.ROTATE_90))
    legend_font = load_font(MAX_LETTERS - 2)
    draw.text((MARGIN, MARGIN), "rows: truth\ncolumns: prediction", FAINT, legend_font, spacing=6)
    _draw_legend(draw, left, top + side + 1.5 * MARGIN, legend_font)
    return picture


def _draw_grid(draw: ImageDraw.ImageDraw, left: int, top: int, cell: int, num_classes: int) -> None:
    """Draw thin lines between the cells; with many classes only every tenth line, to count by."""
    side = cell * num_classes
    for number in range(0, num_classes + 1, 1 if cell >= MIN_CELL_WITH_NUMBER else 10):
        draw.line((left + number * cell, top, left + number * cell, top + side), GRID)
        draw.line((left, top + number * cell, left + side, top + number * cell), GRID)
    draw.rectangle((left, top, left + side, top + side), outline=FAINT)


def _draw_numbers(draw: ImageDraw.ImageDraw, shares: np.ndarray, left: int, top: int, cell: int) -> None:
    """Write percents into the cells in which they round to 1 or more."""
    font = load_font(min(round(0.4 * cell), 22))
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        center = (left + (column + 0.5) * cell, top + (row + 0.5) * cell)
        draw.text(center, f"{100 * share:.0f}", PAPER if share > 0.45 else INK, font, anchor="mm")


def _draw_legend(draw: ImageDraw.ImageDraw, x: float, y: float, font: ImageFont.FreeTypeFont) -> None:
    """Draw both colors for a few shares, and write these shares below."""
    for label, color in (("right", RIGHT), ("confused", WRONG)):
        draw.text((x, y + 8), label, INK, font, anchor="lm")
        for number, share in enumerate(LEGEND_SHARES):
            opacity = share**0.5
            blended = tuple(round(opacity * a + (1 - opacity) * b) for a, b in zip(color, PAPER, strict=True))
            box = (x + 80 + 64 * number, y, x + 80 + 64 * number + 56, y + 16)
            draw.rectangle(box, blended)
        y += 22
    for number, share in enumerate(LEGEND_SHARES):
        draw.text((x + 80 + 64 * number + 28, y + 8), f"{100 * share:.0f}%", FAINT, font, anchor="mm")
