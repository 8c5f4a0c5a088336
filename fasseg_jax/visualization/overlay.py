"""The overlay picture: classes in the palette's colours over the photo, with a legend below."""

import numpy as np
from PIL import Image, ImageDraw

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.legend import _draw_legend, _Layout, _percent, class_shares
from fasseg_jax.visualization.text import INK, PAPER, load_font

__all__ = ["blend", "draw_comparison", "draw_overlay"]

OPACITY = 0.55  # of the colours over the photo
BORDER = (255, 255, 255)
MIN_PHOTO_SIDE = 256  # pixels; photos whose longer side is smaller are shown enlarged
COMPARISON = ("photo", "truth", "prediction")
PANEL_WIDTH, PANEL_GAP = 320, 6  # pixels, of a panel in a comparison
MIN_WIDTH = 420  # pixels, of the picture: room for the legend


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
    font, draw = load_font(layout.text), ImageDraw.Draw(headings)
    for column, heading in enumerate(COMPARISON):
        draw.text((column * (PANEL_WIDTH + PANEL_GAP) + layout.gap, layout.text), heading, INK, font, anchor="lm")
    return headings


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
