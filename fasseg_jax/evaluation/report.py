"""The report of an evaluation: one HTML file that needs no other file."""

import base64
import dataclasses
import io
import json
import math
import re
from html import escape

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.metrics import Counts, SegmentationMetrics, count, most_confused
from fasseg_jax.evaluation.tables import COLUMNS, MEANS, percent, table_order
from fasseg_jax.runtime.files import Path, make_path, write_atomically
from fasseg_jax.visualization.confusion_matrix import confusion_cells, row_shares
from fasseg_jax.visualization.legend import class_shares

__all__ = ["PicturedImage", "write_report"]

TEMPLATE = Path(__file__).parent / "report_template.html"
MAX_SIDE = 640  # pixels, of a picture
JPEG_QUALITY = 80
MAX_PAIRS = 24  # pairs of confused classes
MAX_CHIPS = 14  # class names below an image
MAX_NAMED_CLASSES = 40  # with more classes the names beside the matrix would be too small to read
MAX_NAME = 18  # letters, of a name beside the matrix
CELL = 20  # units of the matrix's drawing; letters have 7
MATRIX_WIDTH = 900  # pixels, at most
MATRIX_ZOOM = 2.2  # pixels per unit, at most


@dataclasses.dataclass(frozen=True)
class PicturedImage:
    """An image that the report shows.

    Attributes:
      name: its name in the data set.
      score: see `metrics.image_score`.
      photo: RGB.
      truth: class ids; pixels whose label is not a class id, such as ignored pixels, get no color.
      prediction: class ids.
    """

    name: str
    score: float
    photo: UInt8[np.ndarray, "H W 3"]
    truth: Integer[np.ndarray, "H W"]
    prediction: Integer[np.ndarray, "H W"]


def write_report(
    path: str | Path,
    metrics: SegmentationMetrics,
    counts: Counts,
    classes: ClassTable,
    best: list[PicturedImage],
    worst: list[PicturedImage],
    facts: dict[str, str],
) -> None:
    """Write the report.

    It shows the metrics, a table of the classes that a click sorts, the most confused pairs of classes, the confusion
    matrix, and images with ground truth and prediction. A browser that opens the file fetches nothing else.

    Args:
      path: the HTML file.
      metrics: metrics of the data set.
      counts: the counts that they are computed from.
      classes: names and palette.
      best: images with the best scores, the best first; may be empty.
      worst: images with the worst scores, the worst first; may be empty.
      facts: what was evaluated and how ("checkpoint": "runs/mine/…"), for the head of the report, in this order.
    """
    present = int((metrics.truth_share > 0).sum())
    galleries = [
        (anchor, title, images)
        for anchor, title, images in (("worst", "Worst images", worst), ("best", "Best images", best))
        if images
    ]
    # A small data set may hold few of 150 classes; the others would only make the matrix illegible.
    shown = np.flatnonzero(counts.confusion.sum(axis=0) + counts.confusion.sum(axis=1))
    confusion, num_absent = counts.confusion[np.ix_(shown, shown)], len(classes) - len(shown)
    links = [("classes", "Classes"), ("pairs", "Most confused"), ("confusion", "Confusion matrix")]
    parts = {
        "mean_iou": percent(metrics.mean_iou),
        "facts": "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(fact))}</dd>" for name, fact in facts.items()),
        "links": "".join(f'<a href="#{link[0]}">{link[1]}</a>' for link in [*links, *galleries]),
        "tiles": "".join(_tile(title, getattr(metrics, field)) for field, title in MEANS.items()),
        "note": f"In percent. Means are over the {present} classes (of {len(classes)}) that occur in the ground truth.",
        "headings": _headings(),
        "rows": "".join(_class_row(class_id, metrics, classes) for class_id in table_order(metrics)),
        "pairs": _confused_pairs(counts.confusion, classes),
        "left_out": f" Classes that occur in neither ({num_absent}) are left out." if num_absent else "",
        "matrix": _matrix(confusion, [classes.names[class_id] for class_id in shown]),
        "galleries": "".join(
            _gallery(*gallery, classes, toolbar=number == 0) for number, gallery in enumerate(galleries)
        ),
        "data": _data(confusion, shown, classes),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    page = re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], template)
    with write_atomically(make_path(path)) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def _data(confusion: np.ndarray, shown: np.ndarray, classes: ClassTable) -> str:
    """The data for the page's script: class names, one number per color, and the matrix's nonzero counts."""
    rows = [np.stack([np.flatnonzero(row), row[row > 0]], axis=1).ravel().tolist() for row in confusion]
    colors = classes.palette.astype(int) @ (1 << 16, 1 << 8, 1)
    data = {"names": classes.names, "colors": colors.tolist(), "shown": shown.tolist(), "confusion": rows}
    # A class name must not be able to end the script element that holds the data.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _tile(title: str, share: float) -> str:
    return f'<div class="card tile"><b>{percent(share)}<small>%</small></b><span>{escape(title)}</span></div>'


def _headings() -> str:
    """The table's headings; rows start out sorted by IoU."""
    columns = {"id": "id", "name": "class", **COLUMNS}
    sort = {"iou": ' aria-sort="ascending"'}
    return "".join(
        f'<th scope="col"{sort.get(field, "")}><button type="button">{title}</button></th>'
        for field, title in columns.items()
    )


def _class_row(class_id: int, metrics: SegmentationMetrics, classes: ClassTable) -> str:
    name = escape(classes.names[class_id])
    cells = [
        f'<td data-value="{class_id}">{class_id}</td>',
        f'<td data-value="{name}">{_class(class_id, classes)}</td>',
    ]
    for field in COLUMNS:
        share = float(getattr(metrics, field)[class_id])
        value = "" if math.isnan(share) else repr(share)
        text = percent(share)
        if field == "iou":
            text = f'<div class="bar" style="--share:{100 * np.nan_to_num(share):.1f}%">{text}</div>'
        cells.append(f'<td data-value="{value}">{text}</td>')
    note = ' class="absent" title="This class does not occur in the ground truth."'
    absent = "" if metrics.truth_share[class_id] > 0 else note
    return f"<tr{absent}>{''.join(cells)}</tr>"


def _class(class_id: int, classes: ClassTable) -> str:
    """A class's color and name."""
    red, green, blue = classes.palette[class_id]
    swatch = f'<i class="swatch" style="background:rgb({red} {green} {blue})"></i>'
    return f'<span class="class">{swatch}{escape(classes.names[class_id])}</span>'


def _confused_pairs(confusion: np.ndarray, classes: ClassTable) -> str:
    errors = confusion.sum() - np.trace(confusion)
    items = []
    for truth, predicted in most_confused(confusion, MAX_PAIRS):
        of_class = confusion[truth, predicted] / confusion[truth].sum()
        of_errors = confusion[truth, predicted] / errors
        items.append(
            f"<li>{_class(truth, classes)} taken for {_class(predicted, classes)}"
            f'<div class="numbers">{percent(of_class)}% of {escape(classes.names[truth])} · '
            f'{percent(of_errors)}% of all errors</div><div class="track"><i style="width:{100 * of_class:.1f}%"></i>'
            "</div></li>"
        )
    return "".join(items) or "<li>Every pixel is correct.</li>"


def _matrix(confusion: np.ndarray, names: list[str]) -> str:
    """The matrix as SVG around an image with one pixel per cell, with names and percents if there is room."""
    if not names:
        return "Nothing was counted."
    num_classes = len(names)
    named = num_classes <= MAX_NAMED_CLASSES
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in names]
    margin = 3.9 * max(map(len, names)) + 8 if named else 1  # units of a label's letters
    cell = CELL if named else CELL / 4
    side = cell * num_classes
    elements = [
        f'<image x="{margin}" y="{margin}" width="{side}" height="{side}" preserveAspectRatio="none" '
        f'href="{_data_uri(Image.fromarray(confusion_cells(confusion)), "PNG")}"/>',
        f'<rect class="frame" x="{margin}" y="{margin}" width="{side}" height="{side}"/>',
    ]
    if named:
        for number, name in enumerate(map(escape, names)):
            middle = margin + (number + 0.5) * cell
            elements.append(f'<text x="{margin - 5}" y="{middle}" text-anchor="end">{name}</text>')
            elements.append(f'<text transform="translate({middle} {margin - 5}) rotate(-90)">{name}</text>')
        shares = row_shares(confusion)
        elements.append('<g class="percents">')
        for row, column in np.argwhere(shares >= 0.005):
            x, y = (margin + (position + 0.5) * cell for position in (column, row))
            share = shares[row, column]
            color = ' fill="#fff"' if share > 0.45 else ""
            elements.append(f'<text x="{x}" y="{y}"{color}>{100 * share:.0f}</text>')
        elements.append("</g>")
    bar = f'<rect class="cross" visibility="hidden" x="{margin}" y="{margin}"'
    elements.append(f'{bar} width="{side}" height="{cell}"/>{bar} width="{cell}" height="{side}"/>')
    extent = margin + side + 1
    width = min(MATRIX_ZOOM * extent, MATRIX_WIDTH)
    return f'<svg viewBox="0 0 {extent} {extent}" width="{width:.0f}" style="max-width:100%">{"".join(elements)}</svg>'


def _gallery(anchor: str, title: str, images: list[PicturedImage], classes: ClassTable, toolbar: bool) -> str:
    tools = (
        '<div class="toolbar"><label>Colors over the photo'
        '<input type="range" min="0" max="100" value="55"></label>'
        '<label><input type="checkbox">Only wrong pixels of the prediction</label>'
        "<span>Point at a picture to read its classes.</span></div>"
    )
    figures = "".join(_figure(image, classes) for image in images)
    return f'<section id="{anchor}"><h2>{title}</h2>{tools if toolbar else ""}{figures}</section>'


def _figure(image: PicturedImage, classes: ClassTable) -> str:
    """Photo, ground truth and prediction. The page holds the photo once, and the browser blends label maps over it."""
    height, width = image.truth.shape
    scale = min(1, MAX_SIDE / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    photo = Image.fromarray(image.photo).resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    ignored = image.truth >= len(classes)
    errors = Image.fromarray(((image.truth != image.prediction) & ~ignored).astype(np.uint8) * 255)
    errors = errors.resize(size, Image.Resampling.NEAREST)
    mask = Image.merge("LA", (errors, errors))
    truth, prediction = (_label_picture(labels, classes, size) for labels in (image.truth, image.prediction))
    style = (
        f"--ratio:{size[0]}/{size[1]};--photo:url({_data_uri(photo, 'JPEG')});--errors:url({_data_uri(mask, 'PNG')})"
    )
    panels = ['<div class="panel"><span>photo</span></div>']
    for kind, title, uri in (("truth", "ground truth", truth), ("prediction", "prediction", prediction)):
        panels.append(f'<div class="panel {kind}"><img alt="{title}" src="{uri}"><span>{title}</span></div>')
    return (
        f'<figure class="card" style="{style}"><figcaption><b>{escape(image.name)}</b>'
        f"<span>mIoU of this image <b>{percent(image.score)}</b></span></figcaption>"
        f'<div class="panels">{"".join(panels)}</div>{_notes(image, classes)}</figure>'
    )


def _notes(image: PicturedImage, classes: ClassTable) -> str:
    """The classes of an image, and its most confused pairs in percent of its pixels."""
    num_classes = len(classes)
    labels = np.concatenate([image.truth, image.prediction])
    shares_found = class_shares(np.where(labels < num_classes, labels, num_classes), num_classes + 1)
    found = [class_id for class_id, _ in shares_found if class_id < num_classes]
    chips = "".join(_class(class_id, classes) for class_id in found[:MAX_CHIPS])
    if len(found) > MAX_CHIPS:
        chips += f'<span class="faint">and {len(found) - MAX_CHIPS} more</span>'
    truth = np.where(image.truth < num_classes, image.truth, num_classes)
    confusion = count(truth, image.prediction, num_classes, num_classes, boundary=False, name=image.name).confusion
    shares, names = confusion / max(1, confusion.sum()), [escape(name) for name in classes.names]
    pairs = [f"{names[a]} taken for {names[b]}: {percent(shares[a, b])}%" for a, b in most_confused(confusion, 3)]
    errors = f'<div class="chips faint">{" · ".join(pairs)}</div>' if pairs else ""
    return f'<div class="chips">{chips}</div>{errors}'


def _label_picture(labels: np.ndarray, classes: ClassTable, size: tuple[int, int]) -> str:
    """Labels in their colors, transparent where a label is not a class id."""
    labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    transparent = np.zeros((1, 4), np.uint8)
    opaque = np.full((len(classes), 1), 255, np.uint8)
    colors = np.concatenate([np.concatenate([classes.palette, opaque], axis=1), transparent])
    return _data_uri(Image.fromarray(colors[np.minimum(labels, len(classes))]), "PNG")


def _data_uri(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, optimize=True, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
