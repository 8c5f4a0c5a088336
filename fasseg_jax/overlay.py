"""The overlay picture: classes in the palette's colours over the photo, with a legend below."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fasseg_jax.classes import ClassTable

__all__ = ["FilmLegend", "blend", "class_shares", "draw_comparison", "draw_overlay", "shorten", "wrap"]

OPACITY = 0.55  # of the colours over the photo
BORDER = (255, 255, 255)
PAPER, INK, FAINT, WARNING = (255, 255, 255), (28, 30, 34), (120, 124, 132), (190, 20, 30)
MIN_PHOTO_SIDE = 256  # pixels; photos whose longer side is smaller are shown enlarged
COMPARISON = ("photo", "truth", "prediction")
PANEL_WIDTH, PANEL_GAP = 320, 6  # pixels, of a panel in a comparison
MIN_WIDTH = 420  # pixels, of the picture: room for the legend
FILM_ROWS, FILM_MIN_SHARE = 2, 0.005  # of a film's legend; classes below this share of a frame do not enter it
PALE = (190, 193, 199)  # letters of classes that a frame lacks


def draw_overlay(image: np.ndarray, labels: np.ndarray, classes: ClassTable, warning: str | None = None) -> Image.Image:
    """Draw the classes over a photo, with thin borders between them and a legend of those found, largest first.

    Args:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids, each below `len(classes)`.
      classes: names and palette.
      warning: a sentence above the legend, in red.

    Returns:
      An RGB picture; the photo's first pixel is its first, and an integer number of its pixels shows each pixel.
    """
    enlargement = max(1, MIN_PHOTO_SIDE // max(labels.shape))
    image, labels = (array.repeat(enlargement, 0).repeat(enlargement, 1) for array in (image, labels))
    photo = blend(image, labels, classes.palette)
    layout = _Layout.fit(photo.shape[:2])
    width = max(photo.shape[1], MIN_WIDTH)
    entries = [(class_id, _percent(share)) for class_id, share in class_shares(labels, len(classes))]
    legend = _draw_legend(entries, classes, width, layout, warning)
    picture = Image.new("RGB", (width, photo.shape[0] + legend.height), PAPER)
    picture.paste(Image.fromarray(photo), (0, 0))
    picture.paste(legend, (0, photo.shape[0]))
    return picture


def draw_comparison(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: ClassTable) -> np.ndarray:
    """Draw samples below each other: photo, truth, prediction, with a legend of the classes in either.

    Args:
      rows: image (H, W, 3) uint8, true labels (H, W) and predicted labels (H, W) of each. Labels that are no class, as
        ignored pixels have, are left without colour.
      classes: names and palette.

    Returns:
      A picture, uint8 (H, W, 3).
    """
    width = len(COMPARISON) * (PANEL_WIDTH + PANEL_GAP) - PANEL_GAP
    layout = _Layout.fit((PANEL_WIDTH, width))
    strips = [_draw_headings(width, layout)]
    found = []
    for image, *label_maps in rows:
        size = (PANEL_WIDTH, max(1, round(PANEL_WIDTH * image.shape[0] / image.shape[1])))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        label_maps = [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.NEAREST)) for x in label_maps]
        found += [labels[labels < len(classes)] for labels in label_maps]
        strip = Image.new("RGB", (width, size[1] + PANEL_GAP), PAPER)
        for column, panel in enumerate([image, *(blend(image, labels, classes.palette) for labels in label_maps)]):
            strip.paste(Image.fromarray(panel), (column * (PANEL_WIDTH + PANEL_GAP), 0))
        strips.append(strip)
    entries = [(class_id, "") for class_id, _ in class_shares(np.concatenate(found)[None], len(classes))]
    strips.append(_draw_legend(entries, classes, width, layout, None))
    return np.concatenate([np.asarray(strip) for strip in strips])


def _draw_headings(width: int, layout: "_Layout") -> Image.Image:
    headings = Image.new("RGB", (width, 2 * layout.text), PAPER)
    font, draw = ImageFont.load_default(layout.text), ImageDraw.Draw(headings)
    for column, heading in enumerate(COMPARISON):
        draw.text((column * (PANEL_WIDTH + PANEL_GAP) + layout.gap, layout.text), heading, INK, font, anchor="lm")
    return headings


def class_shares(labels: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
    """The classes found in `labels` and their shares of its pixels, largest first."""
    counts = sum(np.bincount(row, minlength=num_classes) for row in labels)  # by rows: each is cast to 64 bits
    order = np.argsort(-counts, kind="stable")
    return [(int(class_id), counts[class_id] / labels.size) for class_id in order if counts[class_id]]


def blend(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Lay the classes' colours over a photo and draw thin borders between them.

    Args:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids; those beyond the palette, as ignored pixels have, are left without colour.
      palette: (K, 3) uint8 RGB.

    Returns:
      uint8 RGB, (H, W, 3).
    """
    percent = round(100 * OPACITY)
    coloured = labels < len(palette)
    labels = np.where(coloured, labels, 0)
    blended = np.empty_like(image)
    # In 16 bits and channel by channel, for the memory that large scans take: percent x 255 < 2^16.
    for channel in range(3):
        mixture = image[..., channel] * np.uint16(100 - percent)
        mixture += (palette[:, channel] * np.uint16(percent))[labels]
        blended[..., channel] = np.where(coloured, (mixture + np.uint16(50)) // np.uint16(100), image[..., channel])
    # Wide enough to be seen when the whole picture is: one pixel per 700 of a square photo of the same area.
    width = max(1, round(labels.size**0.5 / 700))
    blended[_borders(labels, width)] = BORDER
    return blended


def _borders(labels: np.ndarray, width: int) -> np.ndarray:
    """Where two classes meet, (H, W) bool: the `width` pixels to the left and above each change."""
    border = np.zeros(labels.shape, bool)
    changed = labels[1:] != labels[:-1]
    for shift in range(width):
        border[: len(changed) - shift] |= changed[shift:]
    changed = labels[:, 1:] != labels[:, :-1]
    for shift in range(width):
        border[:, : changed.shape[1] - shift] |= changed[:, shift:]
    return border


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
    font = ImageFont.load_default(layout.text)
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
        draw.text((layout.margin, middle), line, WARNING, font, anchor="lm")
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


class FilmLegend:
    """A strip of class names below the frames of a film.

    It has the same size throughout, and a class keeps its place in it until another needs that.
    """

    def __init__(self, classes: ClassTable, width: int, warning: str | None = None):
        """For frames `width` pixels wide; `warning` is a sentence below the names, in red."""
        self._classes, self._width, self._warning = classes, width, warning
        self._font = ImageFont.load_default(max(12, round(0.022 * width)))
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
            draw.text((swatch / 2, (FILM_ROWS + 0.75) * self._row), text, WARNING, self._font, anchor="lm")
        return np.asarray(strip)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.001 else "<0.1%"


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text`, its end replaced by dots where it is too wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,;") + "…"


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """`text` broken between words into lines of at most `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
