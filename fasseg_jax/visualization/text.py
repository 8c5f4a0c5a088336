"""Colours and text of all pictures."""

from PIL import ImageFont

__all__ = ["shorten", "wrap"]
PAPER, INK, FAINT, WARNING_RED = (255, 255, 255), (28, 30, 34), (120, 124, 132), (190, 20, 30)


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
