"""Metrics as a table on the terminal, as a JSON file and as a CSV file."""

import csv
import json
import math
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.metrics import SegmentationMetrics
from fasseg_jax.runtime.csv_text import csv_text
from fasseg_jax.runtime.files import Path, write_atomically

__all__ = ["COLUMNS", "MEANS", "percent", "print_table", "table_order", "write_csv", "write_json"]

MEANS = {
    "mean_iou": "mIoU",
    "mean_boundary_iou": "boundary mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
}
COLUMNS = {
    "iou": "IoU",
    "boundary_iou": "boundary IoU",
    "accuracy": "accuracy",
    "truth_share": "in truth",
    "predicted_share": "predicted",
}
BAR_WIDTH = 12  # letters


def print_table(metrics: SegmentationMetrics, classes: ClassTable, console: Console) -> None:
    """Print a row for each class and the overall metrics below, in percent.

    Rows are sorted by IoU, the best first. Classes that do not occur in the ground truth enter no mean; they come first
    of all, and are dimmed.
    """
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("id", justify="right", style="dim")
    table.add_column("class", no_wrap=True, overflow="ellipsis", min_width=8)
    wide = console.width >= 90
    if wide:
        table.add_column("", no_wrap=True)  # a bar as long as the IoU
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for class_id in reversed(table_order(metrics)):
        color = "rgb({},{},{})".format(*classes.palette[class_id])
        name = Text.assemble(("■ ", color), classes.names[class_id])
        cells = [percent(getattr(metrics, field)[class_id]) for field in COLUMNS]
        bar = [_bar(metrics.iou[class_id], color)] if wide else []
        table.add_row(str(class_id), name, *bar, *cells, style="" if metrics.truth_share[class_id] > 0 else "dim")
    console.print(table)
    overall = Table.grid(padding=(0, 3))
    for field, title in MEANS.items():
        overall.add_row(f" {title}", Text(percent(getattr(metrics, field)), "bold", justify="right"))
    num_present = int((metrics.truth_share > 0).sum())
    console.print(overall)
    note = f"In percent. Means are over the {num_present} classes (of {len(classes)}) that occur in the ground truth."
    console.print(f" [dim]{note}[/dim]")
    if not np.isnan(metrics.mean_boundary_iou):
        console.print(" [dim]Boundary IoU as published (Cheng et al., 2021), not what Detectron2 logs.[/dim]")


def table_order(metrics: SegmentationMetrics) -> list[int]:
    """Class ids sorted by IoU, the lowest first; classes that do not occur in the ground truth come last."""
    present = metrics.truth_share > 0
    return np.lexsort((np.nan_to_num(metrics.iou), ~present)).tolist()


def write_json(path: str | Path, metrics: SegmentationMetrics, classes: ClassTable, extra: dict[str, Any]) -> None:
    """Write the metrics as JSON: the entries of `extra`, the overall "metrics", and a list "classes" in order of ids.

    Metrics are from 0 to 1, and null where undefined.

    Raises:
      ValueError: `extra` has an entry "metrics" or "classes".
    """
    reserved = {"metrics", "classes"} & extra.keys()
    if reserved:
        raise ValueError(f"these names are taken in a file of metrics: {', '.join(sorted(reserved))}")
    content = extra | {
        "metrics": {field: _defined(getattr(metrics, field)) for field in MEANS},
        "classes": [
            {"id": class_id, "name": name} | {field: _defined(getattr(metrics, field)[class_id]) for field in COLUMNS}
            for class_id, name in enumerate(classes.names)
        ],
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with write_atomically(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path: str | Path, metrics: SegmentationMetrics, classes: ClassTable) -> None:
    """Write a row for each class as CSV, in order of ids; metrics are from 0 to 1, and empty where undefined."""
    with write_atomically(Path(path)) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["id", "name", *COLUMNS])
        for class_id, name in enumerate(classes.names):
            values = [_defined(getattr(metrics, field)[class_id]) for field in COLUMNS]
            writer.writerow([class_id, csv_text(name), *("" if value is None else f"{value:.6g}" for value in values)])


def percent(value: float) -> str:
    """A metric from 0 to 1 in percent, for people; a dash if undefined."""
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _bar(value: float, color: str) -> Text:
    length = 0 if math.isnan(value) else round(BAR_WIDTH * value)
    return Text.assemble(("━" * length, color), ("━" * (BAR_WIDTH - length), "bright_black"))


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
