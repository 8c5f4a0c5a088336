"""Legends of pictures and films."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.text import FAINT, INK, PAPER, WARNING_RED, load_font, shorten, wrap

__all__ = ["VideoLegend", "class_shares"]
FILM_ROWS, FILM_MIN_SHARE = 2, 0.005  # of a film's legend; classes below this share of a frame do not enter it
PALE = (190, 193, 199)  # letters of classes that a frame lacks


def class_shares(labels: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
    """The classes found in `labels` and their shares of its pixels, largest first."""
    counts = sum(np.bincount(row, minlength=num_classes) for row in labels)  # by rows: each is cast to 64 bits
    order = np.argsort(-counts, kind="stable")
    return [(int(class_id), counts[class_id] / labels.size) for class_id in order if counts[class_id]]


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Lengths of the legend in pixels, all following from the size of its letters."""

    text: int
    row: int
    swatch: int
    gap: int
    margin: int

    @classmethod
    def fit(cls, size: tuple[int, int]) -> "_Layout":
        text = max(14, round(0.024 * (size[0] * size[1]) ** 0.5))
        return cls(text, round(1.75 * text), round(1.1 * text), round(0.55 * text), round(1.2 * text))


def _draw_legend(
    entries: list[tuple[int, str]], classes: ClassTable, width: int, layout: _Layout, warning: str | None
) -> Image.Image:
    """A legend of class ids and notes, `width` wide and as high as it needs to be: swatch, name, note, in columns."""
    font = load_font(layout.text)
    entries = [(tuple(classes.palette[i].tolist()), classes.names[i], note) for i, note in entries]
    note_width = max((font.getlength(note) for *_, note in entries), default=0)
    fixed = layout.swatch + 3 * layout.gap + note_width  # of a column, beside the name
    room = width - 2 * layout.margin
    name_width = min(max((font.getlength(name) for _, name, _ in entries), default=0), room - fixed)
    spacing = 2 * layout.margin
    num_columns = int(max(1, min(len(entries), (room + spacing) // (fixed + name_width + spacing))))
    num_rows = -(-len(entries) // num_columns)
    lines = wrap(warning, font, room) if warning else []
    top = layout.margin + len(lines) * layout.row + (layout.gap if lines else 0)
    legend = Image.new("RGB", (width, top + num_rows * layout.row + layout.margin), PAPER)
    draw = ImageDraw.Draw(legend)
    for number, line in enumerate(lines):
        middle = layout.margin + number * layout.row + layout.row / 2
        draw.text((layout.margin, middle), line, WARNING_RED, font, anchor="lm")
    for number, (colour, name, note) in enumerate(entries):
        column, row = divmod(number, num_rows)
        x = layout.margin + column * (fixed + name_width + spacing)
        middle = top + row * layout.row + layout.row / 2
        box = (x, middle - layout.swatch / 2, x + layout.swatch, middle + layout.swatch / 2)
        draw.rounded_rectangle(box, layout.swatch / 5, colour, FAINT, max(1, layout.text // 24))
        x += layout.swatch + layout.gap
        draw.text((x, middle), shorten(name, font, name_width), INK, font, anchor="lm")
        draw.text((x + name_width + 2 * layout.gap + note_width, middle), note, FAINT, font, anchor="rm")
    return legend


class VideoLegend:
    """A strip of class names below the frames of a film.

    It has the same size throughout, and a class keeps its place in it until another needs that.
    """

    def __init__(self, classes: ClassTable, width: int, warning: str | None = None):
        """For frames `width` pixels wide; `warning` is a sentence below the names, in red."""
        self._classes, self._width, self._warning = classes, width, warning
        self._font = load_font(max(12, round(0.022 * width)))
        self._row = round(1.8 * self._font.size)
        self._columns = max(1, int(width // (9 * self._font.size)))
        self.height = ((FILM_ROWS + bool(warning)) * self._row + self._row // 2) // 2 * 2
        self._places: list[int | None] = [None] * (self._columns * FILM_ROWS)
        self._drawn, self._strip = None, None

    def draw(self, labels: np.ndarray) -> np.ndarray:
        """The strip for a frame, uint8 (height, width, 3); classes that the frame lacks are pale."""
        shares = class_shares(labels, len(self._classes))[: len(self._places)]
        present = [class_id for class_id, share in shares if share >= FILM_MIN_SHARE]
        for class_id in present:
            if class_id not in self._places:
                free = [i for i, other in enumerate(self._places) if other not in present]
                self._places[min(free, key=lambda i: self._places[i] is not None)] = class_id
        wanted = [(class_id, class_id in present) for class_id in self._places if class_id is not None]
        if wanted != self._drawn:
            self._drawn, self._strip = wanted, self._picture(wanted)
        return self._strip

    def _picture(self, entries: list[tuple[int, bool]]) -> np.ndarray:
        strip = Image.new("RGB", (self._width, self.height), PAPER)
        draw = ImageDraw.Draw(strip)
        column_width, swatch = self._width / self._columns, 0.6 * self._row
        for position, (class_id, present) in enumerate(entries):
            row, column = divmod(position, self._columns)
            x, middle = column * column_width + swatch / 2, (row + 0.75) * self._row
            colour = self._classes.palette[class_id].astype(int)
            colour = colour if present else (colour + 2 * np.array(PAPER)) // 3
            draw.rounded_rectangle((x, middle - swatch / 2, x + swatch, middle + swatch / 2), 3, tuple(colour.tolist()))
            name = shorten(self._classes.names[class_id], self._font, column_width - 2.5 * swatch)
            draw.text((x + 1.4 * swatch, middle), name, INK if present else PALE, self._font, anchor="lm")
        if self._warning:
            text = shorten(self._warning, self._font, self._width - swatch)
            draw.text((swatch / 2, (FILM_ROWS + 0.75) * self._row), text, WARNING_RED, self._font, anchor="lm")
        return np.asarray(strip)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.001 else "<0.1%"
