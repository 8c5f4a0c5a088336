"""An `Explanation` as one picture: the prediction and HRCA's choice above, then a band for each query."""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.inference.explain import MASK_STRIDE, Explanation, Focus, Query, Selection
from fasseg_jax.visualization.overlay import blend
from fasseg_jax.visualization.text import FAINT, INK, PAPER, WARNING_RED, load_font, shorten, wrap

__all__ = ["draw_explanation", "heat_colours"]

SMALL = 184  # pixels, the longer side of a layer's panel, at least; a large panel is twice as long
GAP, MARGIN = 8, 36
MIN_CELL = 104  # pixels, of a column: room for a caption under a narrow panel
TITLE, HEADING, NOTE, CAPTION = 30, 20, 16, 14  # sizes of letters
SCALE = 120  # pixels, of the scale of heat colours
MASK_OPACITY = 0.6
# Black, violet, red, orange, light yellow: growing in lightness, so that it reads without colour too.
HEAT = np.array([(8, 5, 20), (90, 20, 110), (190, 55, 80), (248, 140, 20), (252, 250, 170)], np.float32)


def draw_explanation(
    explanation: Explanation,
    image: np.ndarray,
    labels: np.ndarray,
    classes: ClassTable,
    title: str,
    warning: str | None = None,
) -> Image.Image:
    """Draw a page: photo, prediction and HRCA's windows; for each query its mask and its focus through the layers.

    Args:
      explanation: of the photo, by `explain`.
      image: uint8 RGB, (H, W, 3).
      labels: (H, W), the prediction.
      classes: names and palette.
      title: the page's heading.
      warning: a sentence below the heading, in red.

    Returns:
      An RGB picture.
    """
    page = _Page.fit(explanation, image)
    parts = [page.heading(title, warning), page.overview(explanation, image, labels, classes)]
    for number, query in enumerate(explanation.queries):
        parts.append(page.band(explanation, number, query, classes))
    parts.append(page.notes(explanation))
    picture = Image.new("RGB", (page.width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        picture.paste(part, (0, y))
        y += part.height
    return picture


@dataclasses.dataclass(frozen=True)
class _Page:
    """The page's width in pixels, and the photo in the sizes of its panels, uint8 (height, width, 3).

    Layers are shown in `columns`: whole rounds through the strides in a row, equal strides below each other.
    """

    width: int
    columns: int
    layer: np.ndarray
    large: np.ndarray

    @classmethod
    def fit(cls, explanation: Explanation, image: np.ndarray) -> "_Page":
        large = _resized(image, 2 * SMALL)
        num_scales = 3 if explanation.selections is None else 4
        rounds = -(-len(explanation.focus) // num_scales)
        columns = min(len(explanation.focus), -(-rounds // 2) * num_scales)
        overview = (2 + max(1, len(explanation.selections or ()))) * _cell(large)
        # As large as the overview leaves room for.
        room = (overview - _cell(large)) / columns - GAP
        longer = min(max(SMALL, room * max(image.shape[:2]) / image.shape[1]), 2 * SMALL)
        layer = _resized(image, longer if rounds > 1 else 2 * SMALL)
        return cls(2 * MARGIN + max(overview, _cell(large) + columns * _cell(layer)) - GAP, columns, layer, large)

    def heading(self, title: str, warning: str | None) -> Image.Image:
        strip = Image.new("RGB", (self.width, MARGIN + 2 * TITLE + (2 * HEADING if warning else 0)), PAPER)
        draw = ImageDraw.Draw(strip)
        room = self.width - 2 * MARGIN
        font = load_font(TITLE)
        draw.text((MARGIN, MARGIN), shorten(title, font, room), INK, font)
        if warning:
            font = load_font(HEADING)
            draw.text((MARGIN, MARGIN + 1.6 * TITLE), shorten(warning, font, room), WARNING_RED, font)
        return strip

    def overview(
        self, explanation: Explanation, image: np.ndarray, labels: np.ndarray, classes: ClassTable
    ) -> Image.Image:
        small_labels = np.asarray(Image.fromarray(labels).resize(self.large.shape[1::-1], Image.Resampling.NEAREST))
        panels = [(self.large, "photo"), (blend(self.large, small_labels, classes.palette), "prediction")]
        for selection in explanation.selections or ():
            panels.append((_selected(self.large, selection, image.shape[:2]), f"layer {selection.layer} · HRCA"))
        if explanation.selections is None:
            panels.append((None, "no HRCA"))
        strip = Image.new("RGB", (self.width, self.large.shape[0] + 3 * HEADING), PAPER)
        for number, (panel, caption) in enumerate(panels):
            _put(strip, (MARGIN + number * _cell(self.large), 0), panel, self.large.shape, caption)
        return strip

    def band(self, explanation: Explanation, number: int, query: Query, classes: ClassTable) -> Image.Image:
        """A query's mask, and beside it its focus in each layer."""
        rows = -(-len(explanation.focus) // self.columns)
        row_height = self.layer.shape[0] + 2 * CAPTION
        top = round(2.2 * HEADING)
        height = top + max(self.large.shape[0] + 2 * CAPTION, rows * row_height) + HEADING
        strip = Image.new("RGB", (self.width, height), PAPER)
        draw = ImageDraw.Draw(strip)
        colour = classes.palette[query.class_id]
        draw.line((MARGIN, 0, self.width - MARGIN, 0), (225, 227, 231), 1)
        box = (MARGIN, 0.55 * HEADING, MARGIN + HEADING, 1.55 * HEADING)
        draw.rounded_rectangle(box, 4, tuple(colour.tolist()), FAINT, 1)
        font = load_font(HEADING)
        x, middle = MARGIN + 1.5 * HEADING, 1.05 * HEADING
        name = shorten(classes.names[query.class_id], font, self.width / 2)
        draw.text((x, middle), name, INK, font, anchor="lm")
        facts = f"{query.probability:.0%} sure · {query.share:.1%} of the labels · query {query.index}"
        draw.text((x + font.getlength(name) + HEADING, middle), facts, FAINT, font, anchor="lm")
        _put(strip, (MARGIN, top), _masked(self.large, query, explanation.size, colour), self.large.shape, "mask")
        left = MARGIN + _cell(self.large)
        for position, focus in enumerate(explanation.focus):
            row, column = divmod(position, self.columns)
            corner = (left + column * _cell(self.layer), top + row * row_height)
            panel = _heated(self.layer, focus, number, explanation.size)
            _put(strip, corner, panel, self.layer.shape, f"layer {focus.layer} · 1/{focus.stride}")
        return strip

    def notes(self, explanation: Explanation) -> Image.Image:
        """What the panels show, below the bands."""
        hrca, dfpq = explanation.selections is not None, explanation.positional_queries == "dfpq"
        notes = [
            "Focus: where the cross attention of a layer looks, on tokens of the stride given, mean over heads. The "
            "lightest colour is each panel's largest value.",
            f"DFPQ pools the key positions there into the next layers' positional queries{', except at 1/4' * hrca}."
            if dfpq
            else "No DFPQ in this model: its positional queries are learned and the same for every photo.",
            "HRCA: the layers at 1/4 look at the bright windows alone, to which the latest layer at 1/32 attends most."
            if hrca
            else "No HRCA in this model: every layer looks at a whole map.",
        ]
        font = load_font(NOTE)
        left = MARGIN + SCALE + 2 * GAP
        lines = [line for note in notes for line in wrap(note, font, self.width - left - MARGIN)]
        strip = Image.new("RGB", (self.width, round(1.6 * len(lines) * NOTE) + 2 * MARGIN), PAPER)
        colours = heat_colours(np.linspace(0, 1, SCALE, dtype=np.float32))[None].repeat(NOTE, 0)
        strip.paste(Image.fromarray(colours), (MARGIN, MARGIN // 2 + 2))
        draw = ImageDraw.Draw(strip)
        for number, line in enumerate(lines):
            draw.text((left, MARGIN // 2 + 1.6 * number * NOTE), line, FAINT, font)
        return strip


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours of values in [0, 1], (...) -> uint8 (..., 3), growing in lightness."""
    position = np.clip(values, 0, 1) * (len(HEAT) - 1)
    low = np.minimum(position.astype(int), len(HEAT) - 2)
    weight = (position - low)[..., None]
    return (HEAT[low] * (1 - weight) + HEAT[low + 1] * weight + 0.5).astype(np.uint8)


def _heated(photo: np.ndarray, focus: Focus, number: int, size: tuple[int, int]) -> np.ndarray:
    """A layer's attention of one query over the darkened photo."""
    attention = focus.attention[number]
    strength = _resized_map(attention / max(attention.max(), np.finfo(np.float32).tiny), focus.stride, size, photo)
    strength = strength[..., None]
    # Full colour from a fifth of the maximum on: a weak focus is seen, and where it looks strongly the photo is hidden.
    opacity = np.clip(5 * strength, 0, 1) * 0.85
    mixture = _dimmed(photo) * (1 - opacity) + heat_colours(strength[..., 0]) * opacity
    return (mixture + 0.5).astype(np.uint8)


def _masked(photo: np.ndarray, query: Query, size: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """A query's mask in its class's colour over the darkened photo, which is bright inside."""
    inside = _resized_map(query.mask, MASK_STRIDE, size, photo)[..., None]
    bright = photo * (1 - MASK_OPACITY) + colour * MASK_OPACITY
    return (_dimmed(photo) * (1 - inside) + bright * inside + 0.5).astype(np.uint8)


def _selected(photo: np.ndarray, selection: Selection, size: tuple[int, int]) -> np.ndarray:
    """The photo inside the boxes of `selection` (in pixels of a photo of `size`), dimmed outside, boxes outlined."""
    boxes = selection.boxes * ((photo.shape[1] / size[1], photo.shape[0] / size[0]) * 2)
    boxes = np.round(boxes).astype(int)
    picture = _dimmed(photo)
    for left, top, right, bottom in boxes:
        picture[top:bottom, left:right] = photo[top:bottom, left:right]
    picture = Image.fromarray((picture + 0.5).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in boxes:
        if min(right - left, bottom - top) >= 6:  # outlines of single tokens would hide them
            draw.rectangle((left, top, right - 1, bottom - 1), outline=tuple(HEAT[3].astype(int).tolist()))
    return np.asarray(picture)


def _dimmed(photo: np.ndarray) -> np.ndarray:
    """The photo in dark grey, float (h, w, 3)."""
    grey = photo @ np.array([0.299, 0.587, 0.114], np.float32)
    return (12 + 0.42 * grey)[..., None].repeat(3, -1)


def _resized(image: np.ndarray, longer_side: float) -> np.ndarray:
    width, height = (max(1, round(side * longer_side / max(image.shape[:2]))) for side in image.shape[1::-1])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _resized_map(values: np.ndarray, stride: int, size: tuple[int, int], like: np.ndarray) -> np.ndarray:
    """A map of the padded input, (H/stride, W/stride), without the padding and at the size of the panel `like`."""
    box = (0, 0, size[1] / stride, size[0] / stride)
    values = Image.fromarray(values.astype(np.float32))
    return np.asarray(values.resize(like.shape[1::-1], Image.Resampling.BILINEAR, box=box))


def _cell(panel: np.ndarray) -> int:
    return max(MIN_CELL, panel.shape[1]) + GAP


def _put(
    strip: Image.Image, corner: tuple[int, int], panel: np.ndarray | None, shape: tuple[int, ...], caption: str
) -> None:
    """Paste a panel with its caption below; without a panel, the caption in an empty frame."""
    draw, font = ImageDraw.Draw(strip), load_font(CAPTION)
    x, y = corner
    if panel is None:
        draw.rectangle((x, y, x + shape[1] - 1, y + shape[0] - 1), outline=(225, 227, 231))
        text = shorten(caption, font, shape[1] - 2 * GAP)
        draw.text((x + shape[1] / 2, y + shape[0] / 2), text, FAINT, font, anchor="mm")
        return
    strip.paste(Image.fromarray(panel), corner)
    text = shorten(caption, font, max(MIN_CELL, shape[1]))
    draw.text((x, y + shape[0] + CAPTION), text, FAINT, font, anchor="lm")
