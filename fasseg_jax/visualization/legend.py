"""Legends of overlays and videos."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.text import FAINT, INK, PAPER, WARNING_RED, load_font, shorten, wrap

__all__ = ["LegendLayout", "VideoLegend", "class_shares", "draw_legend"]

VIDEO_ROWS = 2  # of a video's legend
VIDEO_MIN_SHARE = 0.005  # classes below this share of a frame do not enter a video's legend
PALE = (190, 193, 199)  # letters of classes that a frame lacks


def class_shares(labels: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
    """List the classes in `labels` and their shares of its pixels, largest first."""
    counts = np.zeros(num_classes, np.int64)
    for row in labels:  # bincount casts its input to 64 bits, so one row at a time
        counts += np.bincount(row, minlength=num_classes)
    order = np.argsort(-counts, kind="stable")
    return [(int(class_id), counts[class_id] / labels.size) for class_id in order if counts[class_id]]


@dataclasses.dataclass(frozen=True)
class LegendLayout:
    """Lengths of a legend in pixels, all in proportion to its letters.

    Attributes:
      text: size of the letters.
      row: height of an entry.
      swatch: side of a color's square.
      gap: between swatch, name and note.
      margin: around the entries.
    """

    text: int
    row: int
    swatch: int
    gap: int
    margin: int

    @classmethod
    def fit(cls, size: Sequence[int]) -> "LegendLayout":
        """The layout for an image of `size` (height, width)."""
        height, width = size
        text = max(14, round(0.024 * (height * width) ** 0.5))
        return cls(text, round(1.75 * text), round(1.1 * text), round(0.55 * text), round(1.2 * text))


def draw_legend(
    notes: Sequence[tuple[int, str]], classes: ClassTable, width: int, layout: LegendLayout, warning: str | None = None
) -> Image.Image:
    """Draw a legend in columns: for each entry a swatch, the class's name and a note.

    Args:
      notes: class ids and their notes, such as shares.
      classes: names and palette.
      width: of the legend, in pixels; its height follows.
      layout: of the legend.
      warning: a sentence above the entries, in red.
    """
    font = load_font(layout.text)
    names = [classes.names[class_id] for class_id, _ in notes]
    room = width - 2 * layout.margin
    note_width = max((font.getlength(note) for _, note in notes), default=0)
    beside_name = layout.swatch + 3 * layout.gap + note_width  # what a column holds beside the name
    name_width = min(max((font.getlength(name) for name in names), default=0), room - beside_name)
    spacing = 2 * layout.margin
    column_width = beside_name + name_width + spacing
    num_columns = int(max(1, min(len(notes), (room + spacing) // column_width)))
    num_rows = math.ceil(len(notes) / num_columns)
    lines = wrap(warning, font, room) if warning else []
    top = layout.margin + len(lines) * layout.row + (layout.gap if lines else 0)
    legend = Image.new("RGB", (width, top + num_rows * layout.row + layout.margin), PAPER)
    draw = ImageDraw.Draw(legend)
    for number, line in enumerate(lines):
        middle = layout.margin + number * layout.row + layout.row / 2
        draw.text((layout.margin, middle), line, WARNING_RED, font, anchor="lm")
    for number, ((class_id, note), name) in enumerate(zip(notes, names, strict=True)):
        column, row = divmod(number, num_rows)
        x = layout.margin + column * column_width
        middle = top + row * layout.row + layout.row / 2
        box = (x, middle - layout.swatch / 2, x + layout.swatch, middle + layout.swatch / 2)
        color = tuple(classes.palette[class_id].tolist())
        draw.rounded_rectangle(box, layout.swatch / 5, color, FAINT, max(1, layout.text // 24))
        x += layout.swatch + layout.gap
        draw.text((x, middle), shorten(name, font, name_width), INK, font, anchor="lm")
        draw.text((x + name_width + 2 * layout.gap + note_width, middle), note, FAINT, font, anchor="rm")
    return legend


class VideoLegend:
    """A strip of class names below the frames of a video.

    Its size never changes, and a class stays at its position until another class needs that position.

    Attributes:
      height: of the strip, in pixels.
    """

    def __init__(self, classes: ClassTable, width: int, warning: str | None = None):
        """Make a legend for frames `width` pixels wide; `warning` is a sentence below the names, in red."""
        self._classes = classes
        self._width = width
        self._warning = warning
        self._font = load_font(max(12, round(0.022 * width)))
        self._row = round(1.8 * self._font.size)
        self._num_columns = max(1, int(width // (9 * self._font.size)))
        self.height = ((VIDEO_ROWS + bool(warning)) * self._row + self._row // 2) // 2 * 2
        self._class_at: list[int | None] = [None] * (self._num_columns * VIDEO_ROWS)  # class id by position
        self._drawn: list[tuple[int, bool]] = []
        self._strip = self._draw_strip([])

    def draw(self, labels: np.ndarray) -> np.ndarray:
        """The strip for a frame with these labels, uint8 (height, width, 3); classes that it lacks are pale."""
        shares = class_shares(labels, len(self._classes))[: len(self._class_at)]
        present = [class_id for class_id, share in shares if share >= VIDEO_MIN_SHARE]
        for class_id in present:
            if class_id not in self._class_at:
                free = [position for position, other in enumerate(self._class_at) if other not in present]
                empty_first = min(free, key=lambda position: self._class_at[position] is not None)
                self._class_at[empty_first] = class_id
        entries = [(class_id, class_id in present) for class_id in self._class_at if class_id is not None]
        if entries != self._drawn:
            self._drawn = entries
            self._strip = self._draw_strip(entries)
        return self._strip

    def _draw_strip(self, entries: list[tuple[int, bool]]) -> np.ndarray:
        """Draw class ids; those that are not present are pale."""
        strip = Image.new("RGB", (self._width, self.height), PAPER)
        draw = ImageDraw.Draw(strip)
        column_width = self._width / self._num_columns
        swatch = 0.6 * self._row
        for position, (class_id, is_present) in enumerate(entries):
            row, column = divmod(position, self._num_columns)
            x = column * column_width + swatch / 2
            middle = (row + 0.75) * self._row
            color = self._classes.palette[class_id].astype(int)
            if not is_present:
                color = (color + 2 * np.array(PAPER)) // 3
            draw.rounded_rectangle((x, middle - swatch / 2, x + swatch, middle + swatch / 2), 3, tuple(color.tolist()))
            name = shorten(self._classes.names[class_id], self._font, column_width - 2.5 * swatch)
            draw.text((x + 1.4 * swatch, middle), name, INK if is_present else PALE, self._font, anchor="lm")
        if self._warning:
            text = shorten(self._warning, self._font, self._width - swatch)
            draw.text((swatch / 2, (VIDEO_ROWS + 0.75) * self._row), text, WARNING_RED, self._font, anchor="lm")
        return np.asarray(strip)
