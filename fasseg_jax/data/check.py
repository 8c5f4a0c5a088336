"""A look at all data before a training: what is wrong with them, and what they hold."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from fasseg_jax.data.classes import ClassTable, DataError, check_num_classes
from fasseg_jax.data.samples import Source
from fasseg_jax.data.sources.registry import SPLITS, data_classes, find_source
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["SplitReport", "check_data", "check_split", "print_reports"]

PRINTED_PROBLEMS = 20  # of each split; more of them rarely tell more


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What a split holds.

    Attributes:
      split: "training" or "validation".
      problems: one line for each file, or pair of files, that is wrong; an empty tuple if all is well.
      num_images: of which the samples could be read, n.
      sizes: ((smallest height, largest height), (smallest width, largest width)) in pixels; zeros if n = 0.
      pixels: (K,) int64, how many pixels each class has.
      ignored_pixels: how many are ignored.
      images: (K,) int64, in how many images each class occurs.
      classes_per_image: (n,) int64, how many classes each image holds; the largest is enough for
        `config.data.max_targets`.
    """

    split: str
    problems: tuple[str, ...]
    num_images: int
    sizes: tuple[tuple[int, int], tuple[int, int]]
    pixels: np.ndarray
    ignored_pixels: int
    images: np.ndarray
    classes_per_image: np.ndarray


def check_data(config: ConfigDict) -> list[SplitReport]:
    """Read every sample of both splits.

    Args:
      config: the whole configuration.

    Raises:
      DataError: the folder holds no class table, or `config.data.root` is empty.
      FileNotFoundError: there is no class table that `config.data.dataset` names.
    """
    classes = data_classes(config.data)
    reports = []
    for split in SPLITS:
        try:
            source = find_source(config.data, split)
        except DataError as error:  # a missing folder: the other split is still worth a look
            reports.append(_report(split, len(classes), [str(error)], []))
        else:
            reports.append(check_split(source, split, config.data))
    try:
        check_num_classes(classes, config.model.num_classes)
    except DataError as error:
        reports[0] = dataclasses.replace(reports[0], problems=(str(error), *reports[0].problems))
    return reports


def check_split(source: Source, split: str, data: ConfigDict) -> SplitReport:
    """Read every sample of a split.

    Args:
      source: the split.
      split: what it is called.
      data: `config.data`.
    """
    num_classes = len(source.classes)

    def examine(index: int) -> str | tuple[tuple[int, int], np.ndarray]:
        """What is wrong, or the size and how many pixels each class has, the ignored last."""
        try:
            labels = source[index].labels
        except DataError as error:
            return str(error)
        counts = np.bincount(labels.ravel(), minlength=data.ignore_label + 1)
        return labels.shape, np.append(counts[:num_classes], counts[data.ignore_label])

    indices = tqdm(range(len(source)), split, unit="image", leave=False, disable=None)
    results = [result for _, result in map_ahead(examine, indices, data.num_threads)]
    problems = [*source.problems, *(result for result in results if isinstance(result, str))]
    report = _report(split, num_classes, problems, [result for result in results if not isinstance(result, str)])
    most = report.classes_per_image.max(initial=0)
    if split == "training" and most > data.max_targets:
        crowded = f"up to {most} classes in an image: set --config.data.max_targets={most}, it is {data.max_targets}"
        report = dataclasses.replace(report, problems=(*report.problems, crowded))
    return report


def _report(
    split: str, num_classes: int, problems: list[str], results: list[tuple[tuple[int, int], np.ndarray]]
) -> SplitReport:
    pixels = np.zeros(num_classes, np.int64)
    images = np.zeros(num_classes, np.int64)
    ignored_pixels = 0
    for _, counts in results:
        pixels += counts[:-1]
        images += counts[:-1] > 0
        ignored_pixels += int(counts[-1])
    shapes = np.array([shape for shape, _ in results] or [(0, 0)])
    return SplitReport(
        split=split,
        problems=tuple(problems),
        num_images=len(results),
        sizes=tuple(zip(shapes.min(axis=0).tolist(), shapes.max(axis=0).tolist(), strict=True)),
        pixels=pixels,
        ignored_pixels=ignored_pixels,
        images=images,
        classes_per_image=np.array([np.count_nonzero(counts[:-1]) for _, counts in results], np.int64),
    )


def print_reports(reports: list[SplitReport], classes: ClassTable, console: Console | None = None) -> None:
    """Print the reports of the splits: a line for each, a table of the classes, the problems.

    Args:
      reports: of the splits.
      classes: the data's classes.
      console: where to; standard output by default.
    """
    console = console or Console()
    for report in reports:
        console.print(_summary(report), highlight=False)
    table = Table("id", "class", title="Share of the labelled pixels, and share of the images that hold the class")
    for report in reports:
        table.add_column(f"{report.split}\npixels", justify="right")
        table.add_column("\nimages", justify="right")
    for number, name in enumerate(classes.names):
        cells = []
        for report in reports:
            cells.append(_percent(report.pixels[number], report.pixels.sum()))
            cells.append(_percent(report.images[number], report.num_images))
        table.add_row(str(number), name, *cells)
    console.print(table)
    for report in reports:
        for problem in report.problems[:PRINTED_PROBLEMS]:
            console.print(f"{report.split}: {problem}", style="red", highlight=False, markup=False, soft_wrap=True)
        if len(report.problems) > PRINTED_PROBLEMS:
            console.print(f"{report.split}: {len(report.problems) - PRINTED_PROBLEMS} more problems", style="red")
    if not any(report.problems for report in reports):
        console.print("No problems found.", style="green")


def _summary(report: SplitReport) -> str:
    if not report.num_images:
        return f"{report.split}: no images that can be read"
    (low, high), (narrow, wide) = report.sizes
    total = report.pixels.sum() + report.ignored_pixels
    return (
        f"{report.split}: {report.num_images} images, {low} to {high} pixels high and {narrow} to {wide} wide; "
        f"{_percent(report.ignored_pixels, total)} of the pixels ignored; {report.classes_per_image.min()} to "
        f"{report.classes_per_image.max()} classes in an image, {report.classes_per_image.mean():.1f} on average"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if part else "-"
