"""Colours and text of all pictures."""

from PIL import ImageFont

__all__ = ["load_font", "shorten", "wrap"]
PAPER, INK, FAINT, WARNING_RED = (255, 255, 255), (28, 30, 34), (120, 124, 132), (190, 20, 30)


def load_font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, with letters of `size` pixels.

    Raises:
      RuntimeError: Pillow was built without FreeType, so that its font has a single size.
    """
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install one from PyPI")
    return font


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
