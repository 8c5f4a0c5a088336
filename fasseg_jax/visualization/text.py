"""Colors and text of all drawn output."""

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
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,;") + "…"


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
