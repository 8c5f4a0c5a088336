"""Colors and text of all drawn output."""

import bisect

from PIL import ImageFont

__all__ = ["FAINT", "INK", "PAPER", "WARNING_RED", "load_font", "shorten", "wrap"]

# RGB.
PAPER = (255, 255, 255)
INK = (28, 30, 34)
FAINT = (120, 124, 132)
WARNING_RED = (190, 20, 30)


def load_font(size: float) -> ImageFont.FreeTypeFont:
    """Load Pillow's own font with letters of `size` pixels.

    Raises:
      RuntimeError: Pillow was built without FreeType, and its font has a single size.
    """
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install one from PyPI")
    return font


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut the end of `text` and append dots if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    # A search by halves: measuring takes long, and lists of class names may have thousands of letters.
    fitting = bisect.bisect_right(range(len(text)), width, key=lambda length: font.getlength(text[:length] + "…"))
    return text[: max(0, fitting - 1)].rstrip(" ,;") + "…"


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break `text` between words into lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
