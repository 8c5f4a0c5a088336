"""An `Explanation` drawn as one page.

The page holds strips below each other: the heading; an overview with the photo, the prediction and HRCA's selections; a
band for each query, with its mask and its focus in each layer; notes.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.inference.explain import Explanation, Focus, Query, Selection
from fasseg_jax.inference.views import ceil_div
from fasseg_jax.models.predictions import MASK_STRIDE
from fasseg_jax.visualization.overlay import blend
from fasseg_jax.visualization.text import FAINT, INK, PAPER, WARNING_RED, load_font, shorten, wrap

__all__ = ["draw_explanation", "heat_colors"]

SMALL = 184  # pixels, the longer side of a layer's panel, at least; a large panel has twice that
GAP, MARGIN = 8, 36
MIN_CELL = 104  # pixels, width of a column: room for a caption below a narrow panel
TITLE, HEADING, NOTE, CAPTION = 30, 20, 16, 14  # pixels, sizes of letters
LINE = (225, 227, 231)
SCALE = 120  # pixels, width of the color scale
MASK_OPACITY = 0.6
# Black, violet, red, orange, light yellow. Lightness grows, so the scale also reads without color.
HEAT = np.array([(8, 5, 20), (90, 20, 110), (190, 55, 80), (248, 140, 20), (252, 250, 170)], np.float32)

Panel = UInt8[np.ndarray, "h w 3"]


def draw_explanation(
    explanation: Explanation,
    image: UInt8[np.ndarray, "H W 3"],
    labels: Integer[np.ndarray, "H W"],
    classes: ClassTable,
    title: str,
    warning: str | None = None,
) -> Image.Image:
    """Draw an explanation.

    Args:
      explanation: of the photo, by `explain`.
      image: RGB.
      labels: the prediction.
      classes: names and palette.
      title: the page's heading.
      warning: a sentence below the heading, in red.

    Returns:
      An RGB picture.
    """
    layout = _Layout.fit(explanation, image)
    strips = [
        _draw_heading(layout, title, warning),
        _draw_overview(layout, explanation, image.shape[:2], labels, classes),
        *(_draw_band(layout, explanation, number, classes) for number in range(len(explanation.queries))),
        _draw_notes(layout, explanation),
    ]
    page = Image.new("RGB", (layout.width, sum(strip.height for strip in strips)), PAPER)
    y = 0
    for strip in strips:
        page.paste(strip, (0, y))
        y += strip.height
    return page


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The sizes of a page.

    Attributes:
      width: of the page, in pixels.
      columns: how many layers a band shows side by side. Rows hold whole rounds through the strides, so that equal
        strides lie below each other.
      small: the photo in the size of a layer's panel.
      large: the photo in the size of the other panels.
    """

    width: int
    columns: int
    small: Panel
    large: Panel

    @classmethod
    def fit(cls, explanation: Explanation, image: np.ndarray) -> "_Layout":
        large = _resize(image, 2 * SMALL)
        num_scales = 3 if explanation.selections is None else 4
        rounds = ceil_div(len(explanation.focus), num_scales)
        columns = min(len(explanation.focus), ceil_div(rounds, 2) * num_scales)
        overview = (2 + max(1, len(explanation.selections or ()))) * _cell(large)
        # A layer's panel is as large as fits below the overview.
        room = (overview - _cell(large)) / columns - GAP
        longer = min(max(SMALL, room * max(image.shape[:2]) / image.shape[1]), 2 * SMALL)
        small = _resize(image, longer if rounds > 1 else 2 * SMALL)
        width = 2 * MARGIN + max(overview, _cell(large) + columns * _cell(small)) - GAP
        return cls(width, columns, small, large)

    def new_strip(self, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        strip = Image.new("RGB", (self.width, height), PAPER)
        return strip, ImageDraw.Draw(strip)


def _draw_heading(layout: _Layout, title: str, warning: str | None) -> Image.Image:
    strip, draw = layout.new_strip(MARGIN + 2 * TITLE + (2 * HEADING if warning else 0))
    room = layout.width - 2 * MARGIN
    font = load_font(TITLE)
    draw.text((MARGIN, MARGIN), shorten(title, font, room), INK, font)
    if warning:
        font = load_font(HEADING)
        draw.text((MARGIN, MARGIN + 1.6 * TITLE), shorten(warning, font, room), WARNING_RED, font)
    return strip


def _draw_overview(
    layout: _Layout, explanation: Explanation, size: tuple[int, ...], labels: np.ndarray, classes: ClassTable
) -> Image.Image:
    """Photo, prediction and HRCA's selections; `size` is the photo's (H, W)."""
    photo = layout.large
    small_labels = np.asarray(Image.fromarray(labels).resize(photo.shape[1::-1], Image.Resampling.NEAREST))
    panels: list[tuple[np.ndarray | None, str]] = [
        (photo, "photo"),
        (blend(photo, small_labels, classes.palette), "prediction"),
    ]
    if explanation.selections is None:
        panels.append((None, "no HRCA"))
    for selection in explanation.selections or ():
        panels.append((_highlight_boxes(photo, selection, size), f"layer {selection.layer} · HRCA"))
    strip, _ = layout.new_strip(photo.shape[0] + 3 * HEADING)
    for number, (panel, caption) in enumerate(panels):
        _paste_panel(strip, (MARGIN + number * _cell(photo), 0), panel, photo.shape, caption)
    return strip


def _draw_band(layout: _Layout, explanation: Explanation, number: int, classes: ClassTable) -> Image.Image:
    """The mask of query `number`, and beside it the query's focus in each layer."""
    query, size = explanation.queries[number], explanation.size
    small, large = layout.small.shape, layout.large.shape
    top, row_height = round(2.2 * HEADING), small[0] + 2 * CAPTION
    num_rows = ceil_div(len(explanation.focus), layout.columns)
    strip, draw = layout.new_strip(top + max(large[0] + 2 * CAPTION, num_rows * row_height) + HEADING)
    _draw_band_heading(layout, draw, query, classes)
    mask = _highlight_mask(layout.large, query, size, classes.palette[query.class_id])
    _paste_panel(strip, (MARGIN, top), mask, large, "mask")
    left = MARGIN + _cell(layout.large)
    for position, focus in enumerate(explanation.focus):
        row, column = divmod(position, layout.columns)
        corner = (left + column * _cell(layout.small), top + row * row_height)
        panel = _draw_heat(layout.small, focus, number, size)
        _paste_panel(strip, corner, panel, small, f"layer {focus.layer} · 1/{focus.stride}")
    return strip


def _draw_band_heading(layout: _Layout, draw: ImageDraw.ImageDraw, query: Query, classes: ClassTable) -> None:
    """The query's class, with its color, and its part in the prediction."""
    draw.line((MARGIN, 0, layout.width - MARGIN, 0), LINE, 1)
    box = (MARGIN, 0.55 * HEADING, MARGIN + HEADING, 1.55 * HEADING)
    draw.rounded_rectangle(box, 4, tuple(classes.palette[query.class_id].tolist()), FAINT, 1)
    font = load_font(HEADING)
    x, middle = MARGIN + 1.5 * HEADING, 1.05 * HEADING
    name = shorten(classes.names[query.class_id], font, layout.width / 2)
    draw.text((x, middle), name, INK, font, anchor="lm")
    facts = f"{query.probability:.0%} sure · {query.share:.1%} of the labels · query {query.index}"
    draw.text((x + font.getlength(name) + HEADING, middle), facts, FAINT, font, anchor="lm")


def _draw_notes(layout: _Layout, explanation: Explanation) -> Image.Image:
    """What the panels show, beside the color scale."""
    font = load_font(NOTE)
    left = MARGIN + SCALE + 2 * GAP
    lines = [line for note in _notes(explanation) for line in wrap(note, font, layout.width - left - MARGIN)]
    strip, draw = layout.new_strip(round(1.6 * len(lines) * NOTE) + 2 * MARGIN)
    scale = heat_colors(np.linspace(0, 1, SCALE, dtype=np.float32))[None].repeat(NOTE, 0)
    strip.paste(Image.fromarray(scale), (MARGIN, MARGIN // 2 + 2))
    for number, line in enumerate(lines):
        draw.text((left, MARGIN // 2 + 1.6 * number * NOTE), line, FAINT, font)
    return strip


def _notes(explanation: Explanation) -> list[str]:
    focus = (
        "Focus: where the cross attention of a layer looks, on tokens of the given stride, averaged over heads. The "
        "lightest color is each panel's largest value."
    )
    if explanation.positional_queries == "dfpq":
        exception = ", except at 1/4" if explanation.selections is not None else ""
        dfpq = f"DFPQ pools the key positions there into the next layers' positional queries{exception}."
    else:
        dfpq = "No DFPQ in this model: its positional queries are learned, and are the same for every photo."
    if explanation.selections is not None:
        hrca = (
            "HRCA: the layers at 1/4 look only at the bright windows, to which the latest layer at 1/32 attends most."
        )
    else:
        hrca = "No HRCA in this model: every layer looks at a whole map."
    return [focus, dfpq, hrca]


def heat_colors(values: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    """The color of each value in [0, 1]; lightness grows with the value."""
    position = np.clip(values, 0, 1) * (len(HEAT) - 1)
    low = np.minimum(position.astype(int), len(HEAT) - 2)
    weight = (position - low)[..., None]
    return (HEAT[low] * (1 - weight) + HEAT[low + 1] * weight + 0.5).astype(np.uint8)


def _draw_heat(photo: Panel, focus: Focus, number: int, size: tuple[int, int]) -> Panel:
    """A layer's attention of query `number` over the darkened photo."""
    attention = focus.attention[number]
    strength = _resize_map(attention / max(attention.max(), np.finfo(np.float32).tiny), focus.stride, size, photo)
    # Full opacity from a fifth of the maximum on: a weak focus shows, and a strong one hides the photo.
    opacity = (np.clip(5 * strength, 0, 1) * 0.85)[..., None]
    mixture = _darken(photo) * (1 - opacity) + heat_colors(strength) * opacity
    return (mixture + 0.5).astype(np.uint8)


def _highlight_mask(photo: Panel, query: Query, size: tuple[int, int], color: UInt8[np.ndarray, "3"]) -> Panel:
    """The photo, tinted with `color` inside the query's mask, and darkened outside of it."""
    inside = _resize_map(query.mask, MASK_STRIDE, size, photo)[..., None]
    bright = photo * (1 - MASK_OPACITY) + color * MASK_OPACITY
    return (_darken(photo) * (1 - inside) + bright * inside + 0.5).astype(np.uint8)


def _highlight_boxes(photo: Panel, selection: Selection, size: tuple[int, ...]) -> Panel:
    """The photo, darkened outside of the boxes, which are in pixels of a photo of `size`; boxes get an outline."""
    scale = (photo.shape[1] / size[1], photo.shape[0] / size[0]) * 2
    boxes = np.round(selection.boxes * scale).astype(int)
    pixels = _darken(photo)
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = photo[top:bottom, left:right]
    picture = Image.fromarray((pixels + 0.5).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in boxes:
        if min(right - left, bottom - top) >= 6:  # an outline would hide a single token
            draw.rectangle((left, top, right - 1, bottom - 1), outline=tuple(HEAT[3].astype(int).tolist()))
    return np.asarray(picture)


def _darken(photo: Panel) -> Float[np.ndarray, "h w 3"]:
    """The photo in dark gray."""
    gray = photo @ np.array([0.299, 0.587, 0.114], np.float32)
    return (12 + 0.42 * gray)[..., None].repeat(3, -1)


def _resize(image: UInt8[np.ndarray, "H W 3"], longer_side: float) -> Panel:
    width, height = (max(1, round(side * longer_side / max(image.shape[:2]))) for side in image.shape[1::-1])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _resize_map(values: Float[np.ndarray, "a b"], stride: int, size: tuple[int, int], like: Panel) -> np.ndarray:
    """A map of the padded input at `stride`, cut to the photo's `size` and resized to the panel `like`."""
    box = (0, 0, size[1] / stride, size[0] / stride)
    picture = Image.fromarray(values.astype(np.float32))
    return np.asarray(picture.resize(like.shape[1::-1], Image.Resampling.BILINEAR, box=box))


def _cell(panel: np.ndarray) -> int:
    """Width of a column of panels."""
    return max(MIN_CELL, panel.shape[1]) + GAP


def _paste_panel(
    strip: Image.Image, corner: tuple[int, int], panel: np.ndarray | None, shape: tuple[int, ...], caption: str
) -> None:
    """Paste a panel with its caption below, or without a panel the caption in an empty frame of `shape`."""
    draw, font = ImageDraw.Draw(strip), load_font(CAPTION)
    x, y = corner
    if panel is None:
        draw.rectangle((x, y, x + shape[1] - 1, y + shape[0] - 1), outline=LINE)
        text = shorten(caption, font, shape[1] - 2 * GAP)
        draw.text((x + shape[1] / 2, y + shape[0] / 2), text, FAINT, font, anchor="mm")
        return
    strip.paste(Image.fromarray(panel), corner)
    text = shorten(caption, font, max(MIN_CELL, shape[1]))
    draw.text((x, y + shape[0] + CAPTION), text, FAINT, font, anchor="lm")
