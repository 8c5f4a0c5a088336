"""Overlays: classes in the palette's colors over the photo, with a legend below."""

import numpy as np
from PIL import Image, ImageDraw

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.legend import LegendLayout, class_shares, draw_legend
from fasseg_jax.visualization.text import INK, PAPER, load_font

__all__ = ["blend", "draw_comparison", "draw_overlay"]

OPACITY = 0.55  # of the colors over the photo
BORDER = (255, 255, 255)  # between classes, RGB
MIN_PHOTO_SIDE = 256  # pixels; photos whose longer side is shorter are enlarged
HEADINGS = ("photo", "ground truth", "prediction")  # of the panels of a comparison
PANEL_WIDTH = 320  # pixels
PANEL_GAP = 6  # pixels between panels
MIN_WIDTH = 420  # pixels of an overlay, which leaves room for the legend


def draw_overlay(image: np.ndarray, labels: np.ndarray, classes: ClassTable, warning: str | None = None) -> Image.Image:
    """Draw the classes over a photo with thin borders between them, and a legend of those found, largest first.

    Args:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids, each below `len(classes)`.
      classes: names and palette.
      warning: a sentence above the legend, in red.

    Returns:
      An RGB image. The photo begins at its first pixel; small photos are enlarged by a whole number.
    """
    enlargement = max(1, MIN_PHOTO_SIDE // max(labels.shape))
    image, labels = (array.repeat(enlargement, 0).repeat(enlargement, 1) for array in (image, labels))
    photo = blend(image, labels, classes.palette)
    layout = LegendLayout.fit(photo.shape[:2])
    width = max(photo.shape[1], MIN_WIDTH)
    notes = [(class_id, _percent(share)) for class_id, share in class_shares(labels, len(classes))]
    legend = draw_legend(notes, classes, width, layout, warning)
    picture = Image.new("RGB", (width, photo.shape[0] + legend.height), PAPER)
    picture.paste(Image.fromarray(photo), (0, 0))
    picture.paste(legend, (0, photo.shape[0]))
    return picture


def draw_comparison(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: ClassTable) -> np.ndarray:
    """Draw samples below each other, each as photo, ground truth and prediction, with a legend of their classes.

    Args:
      rows: for each sample the image, uint8 (H, W, 3), its true labels (H, W) and its predicted labels (H, W). Pixels
        whose label is no class, such as ignored pixels, keep the image's colors.
      classes: names and palette.

    Returns:
      uint8 RGB, (H, W, 3).
    """
    width = len(HEADINGS) * (PANEL_WIDTH + PANEL_GAP) - PANEL_GAP
    layout = LegendLayout.fit((PANEL_WIDTH, width))
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
    notes = [(class_id, "") for class_id, _ in class_shares(np.concatenate(found)[None], len(classes))]
    strips.append(draw_legend(notes, classes, width, layout))
    return np.concatenate([np.asarray(strip) for strip in strips])


def _draw_headings(width: int, layout: LegendLayout) -> Image.Image:
    headings = Image.new("RGB", (width, 2 * layout.text), PAPER)
    font = load_font(layout.text)
    draw = ImageDraw.Draw(headings)
    for column, heading in enumerate(HEADINGS):
        draw.text((column * (PANEL_WIDTH + PANEL_GAP) + layout.gap, layout.text), heading, INK, font, anchor="lm")
    return headings


def blend(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Lay the classes' colors over a photo and draw thin borders between them.

    Args:
      image: uint8 RGB, (H, W, 3).
      labels: (H, W) class ids. Pixels whose label is beyond the palette, such as ignored pixels, keep their color.
      palette: (K, 3) uint8 RGB.

    Returns:
      uint8 RGB, (H, W, 3).
    """
    percent = round(100 * OPACITY)
    is_class = labels < len(palette)
    labels = np.where(is_class, labels, 0)
    blended = np.empty_like(image)
    # Large scans take much memory: compute in 16 bits (100 * 255 < 2^16) and channel by channel.
    for channel in range(3):
        mixture = image[..., channel] * np.uint16(100 - percent)
        mixture += (palette[:, channel] * np.uint16(percent))[labels]
        blended[..., channel] = np.where(is_class, (mixture + np.uint16(50)) // np.uint16(100), image[..., channel])
    # Wide enough to be seen when the whole image is shown: one pixel per 700 of a square photo of the same area.
    width = max(1, round(labels.size**0.5 / 700))
    blended[_borders(labels, width)] = BORDER
    return blended


def _borders(labels: np.ndarray, width: int) -> np.ndarray:
    """(H, W) bool, True at the `width` pixels left of and above each change of class."""
    border = np.zeros(labels.shape, bool)
    changed = labels[1:] != labels[:-1]
    for shift in range(width):
        border[: len(changed) - shift] |= changed[shift:]
    changed = labels[:, 1:] != labels[:, :-1]
    for shift in range(width):
        border[:, : changed.shape[1] - shift] |= changed[:, shift:]
    return border


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.001 else "<0.1%"
