"""Contact sheets: many samples with their labels on one page, over a legend of all classes."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from fasseg_jax.data.check import SplitReport
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.legend import LegendLayout, class_shares, draw_legend
from fasseg_jax.visualization.overlay import blend
from fasseg_jax.visualization.text import FAINT, INK, PAPER, WARNING_RED, load_font, shorten

__all__ = ["SheetSample", "draw_contact_sheet", "samples_per_row"]

WIDTH = 1840  # pixels
PANEL_AREA = 290**2  # pixels, of a photo; each is there twice, with and without labels
LONGEST_PANEL = 600  # pixels
CELL_GAP = 24  # pixels between samples
PAIR_GAP = 4  # pixels between the photo without and with labels
LAYOUT = LegendLayout(text=16, row=28, swatch=17, gap=9, margin=24)
ROOM = WIDTH - 2 * LAYOUT.margin + CELL_GAP  # for the samples of a row and a gap behind each
STRIPE = 6  # pixels, of the stripes on ignored pixels
STRIPE_COLORS = np.array([[70, 72, 78], [215, 217, 222]], np.uint8)
STRIPE_OPACITY = 0.7


@dataclasses.dataclass(frozen=True)
class SheetSample:
    """A sample on a sheet.

    Attributes:
      name: of the sample.
      image: RGB.
      labels: class ids; other values are ignored pixels.
    """

    name: str
    image: UInt8[np.ndarray, "H W 3"]
    labels: Integer[np.ndarray, "H W"]


def samples_per_row(size: tuple[int, int]) -> int:
    """How many samples of `size` (height, width) lie beside each other: so many that a photo has about `PANEL_AREA`."""
    height, width = size
    panel_width = min((PANEL_AREA * width / height) ** 0.5, LONGEST_PANEL)
    return max(1, round(ROOM / (2 * panel_width + PAIR_GAP + CELL_GAP)))


def draw_contact_sheet(
    title: str, samples: Iterable[SheetSample], classes: ClassTable, report: SplitReport, size: tuple[int, int]
) -> Image.Image | None:
    """Draw samples in rows, each without and with its labels, above a legend with the split's shares of all classes.

    Ignored pixels are striped.

    Args:
      title: the first line, to which the number of samples is added.
      samples: in the order in which they are drawn; one is in memory at a time.
      classes: names and palette.
      report: of the split that the samples are from.
      size: (height, width) of the samples, or of the room for each if their sizes differ.

    Returns:
      An RGB image, or None if there are no samples.
    """
    panel = _panel_size(size)
    columns = samples_per_row(size)
    cells = [_draw_cell(sample, classes, panel) for sample in samples]
    if not cells:
        return None
    title = f"{title}: {len(cells)} samples"
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    legend = _draw_legend(classes, report)
    top = LAYOUT.margin + 2 * LAYOUT.row
    heights = [max(cell.height for cell in row) + CELL_GAP // 2 for row in rows]
    sheet = Image.new("RGB", (WIDTH, top + sum(heights) + legend.height), PAPER)
    ImageDraw.Draw(sheet).text((LAYOUT.margin, LAYOUT.margin), title, INK, load_font(1.4 * LAYOUT.text))
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (LAYOUT.margin + column * (ROOM // columns), top))
        top += height
    sheet.paste(legend, (0, top))
    return sheet


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the room for a photo. Photos smaller than it are enlarged by a whole number."""
    height, width = size
    panel_width = (ROOM / samples_per_row(size) - CELL_GAP - PAIR_GAP) / 2
    scale = min(panel_width / width, LONGEST_PANEL / height)
    scale = int(scale) if scale >= 1 else scale
    return max(1, round(height * scale)), max(1, round(width * scale))


def _draw_cell(sample: SheetSample, classes: ClassTable, panel: tuple[int, int]) -> Image.Image:
    """The photo, the photo with labels, and a caption below."""
    height, width = sample.labels.shape
    scale = min(panel[0] / height, panel[1] / width)
    scale = int(scale) if scale >= 1 else scale
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    image = np.asarray(Image.fromarray(sample.image).resize(size, resampling))
    labels = np.asarray(Image.fromarray(sample.labels).resize(size, Image.Resampling.NEAREST))
    overlay = _stripe(blend(image, labels, classes.palette), labels >= len(classes))
    cell = Image.new("RGB", (2 * panel[1] + PAIR_GAP, size[1] + 2 * LAYOUT.row), PAPER)
    cell.paste(Image.fromarray(image), (0, 0))
    cell.paste(Image.fromarray(overlay), (size[0] + PAIR_GAP, 0))
    draw, font = ImageDraw.Draw(cell), load_font(LAYOUT.text - 2)
    middle = size[1] + LAYOUT.row // 2
    draw.text((0, middle), _shorten_start(sample.name, font, cell.width), INK, font, anchor="lm")
    text, color = _describe(sample.labels, classes)
    draw.text((0, middle + LAYOUT.text + 2), shorten(text, font, cell.width), color, font, anchor="lm")
    return cell


def _describe(labels: np.ndarray, classes: ClassTable) -> tuple[str, tuple[int, int, int]]:
    """What a sample holds, the largest first, and the color of that line."""
    is_class = labels < len(classes)
    shares = class_shares(np.where(is_class, labels, len(classes)), len(classes) + 1)
    names = [classes.names[class_id] for class_id, _ in shares if class_id < len(classes)]
    if not names:
        return "all pixels are ignored", WARNING_RED
    ignored = "" if is_class.all() else f"{_percent(np.count_nonzero(~is_class) / labels.size)} ignored · "
    return f"{ignored}{len(names)} {'class' if len(names) == 1 else 'classes'}: {', '.join(names)}", FAINT


def _stripe(picture: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Draw stripes over the ignored pixels."""
    y, x = np.indices(ignored.shape)
    stripes = STRIPE_COLORS[(x + y) // STRIPE % 2]
    striped = (1 - STRIPE_OPACITY) * picture + STRIPE_OPACITY * stripes
    return np.where(ignored[..., None], striped, picture).round().astype(np.uint8)


def _draw_legend(classes: ClassTable, report: SplitReport) -> Image.Image:
    """All classes, the most frequent first, with their shares of the labeled pixels and of the images."""
    labeled = report.pixels.sum()
    order = np.argsort(-report.pixels, kind="stable").tolist()
    notes = [
        (
            class_id,
            f"{_percent(report.pixels[class_id] / labeled)} · {_percent(report.images[class_id] / report.num_images)}"
            if report.pixels[class_id]
            else "never",
        )
        for class_id in order
    ]
    ignored = report.ignored_pixels / max(1, labeled + report.ignored_pixels)
    padding = ", and what pads small crops" if report.split == "training" else ""
    lines = [
        f"Classes of all {report.num_images} images of the {report.split} split: share of the labeled pixels · share "
        "of the images with the class.",
        f"Striped pixels are ignored: {_percent(ignored)} of this split{padding}.",
    ]
    legend = draw_legend(notes, classes, WIDTH, LAYOUT)
    picture = Image.new("RGB", (WIDTH, legend.height + len(lines) * LAYOUT.row), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((LAYOUT.margin, (number + 0.5) * LAYOUT.row), line, INK, load_font(LAYOUT.text), anchor="lm")
    picture.paste(legend, (0, len(lines) * LAYOUT.row))
    return picture


def _shorten_start(text: str, font, width: float) -> str:
    """Cut the beginning of a path if it is too wide: the end tells more."""
    return shorten(text[::-1], font, width)[::-1]


def _percent(share: float) -> str:
    """In percent with two digits that tell something."""
    percent = 100 * share
    if percent == 0:
        return "0%"
    return "<0.01%" if percent < 0.01 else f"{percent:.2f}%" if percent < 1 else f"{percent:.1f}%"
