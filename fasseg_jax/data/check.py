"""A look at all data before a training: what they hold, and what is wrong with them."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from fasseg_jax.data.classes import ClassTable, DataError, check_num_classes
from fasseg_jax.data.folder_layout import LayoutError
from fasseg_jax.data.plausibility import LabelCounts, count_sample, find_mistakes, find_oddities
from fasseg_jax.data.samples import SPLITS, Source
from fasseg_jax.data.sources.registry import data_classes, find_source
from fasseg_jax.runtime.command_line import one_line
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["SplitReport", "check_data", "check_split", "print_reports"]

PRINTED_PROBLEMS = 20  # of each split; more of them rarely tell more


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What a split holds.

    Attributes:
      split: "training" or "validation".
      problems: one line for each mistake in the data as a whole, and for each file, or pair of files, that is wrong; an
        empty tuple if all is well.
      num_images: n, the number of samples that could be read.
      sizes: ((smallest height, largest height), (smallest width, largest width)) in pixels; zeros if n = 0.
      pixels: (K,) int64, the number of pixels of each class.
      ignored_pixels: the number of ignored pixels.
      images: (K,) int64, the number of images that hold each class.
      classes_per_image: (n,) int64, the number of classes in each image. `config.data.max_targets` need not exceed the
        largest.
      notes: one line for each thing that may be a mistake, or may be meant.
    """

    split: str
    problems: tuple[str, ...]
    num_images: int
    sizes: tuple[tuple[int, int], tuple[int, int]]
    pixels: np.ndarray
    ignored_pixels: int
    images: np.ndarray
    classes_per_image: np.ndarray
    notes: tuple[str, ...] = ()


def check_data(config: ConfigDict) -> list[SplitReport]:
    """Read every sample of both splits.

    Args:
      config: the whole configuration.

    Raises:
      LayoutError: the folder holds no photos with label maps.
      DataError: `config.data.root` is empty.
      FileNotFoundError: `config.data.dataset` names no class table.
    """
    classes = data_classes(config.data)
    reports = []
    for split in SPLITS:
        try:
            source = find_source(config.data, split)
        except LayoutError:  # there is nothing to look at
            raise
        except DataError as error:  # a missing folder: still look at the other split
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
      split: its name.
      data: `config.data`.
    """
    num_classes = len(source.classes)

    def count(index: int) -> LabelCounts | str:
        """Count the labels of a sample, or say what is wrong with it."""
        try:
            return count_sample(source[index], num_classes, data.ignore_label)
        except DataError as error:
            return str(error)

    indices = tqdm(range(len(source)), split, unit="image", leave=False, disable=None)
    results = [result for _, result in map_ahead(count, indices, data.num_threads)]
    samples = [result for result in results if not isinstance(result, str)]
    problems = [*source.problems, *(result for result in results if isinstance(result, str))]
    mistakes = find_mistakes(samples, source.classes, data)
    report = _report(split, num_classes, [*mistakes, *problems], samples)
    report = dataclasses.replace(report, notes=tuple(find_oddities(samples, source.classes, data)))
    most = report.classes_per_image.max(initial=0)
    if split == "training" and most > data.max_targets:
        crowded = f"up to {most} classes in an image: set --config.data.max_targets={most}, it is {data.max_targets}"
        report = dataclasses.replace(report, problems=(*report.problems, crowded))
    return report


def _report(split: str, num_classes: int, problems: list[str], counts: list[LabelCounts]) -> SplitReport:
    pixels = np.array([count.pixels for count in counts], np.int64).reshape(-1, num_classes)  # (n, K)
    heights, widths = zip(*[count.size for count in counts], strict=True) if counts else ([0], [0])
    return SplitReport(
        split=split,
        problems=tuple(problems),
        num_images=len(counts),
        sizes=((min(heights), max(heights)), (min(widths), max(widths))),
        pixels=pixels.sum(axis=0),
        ignored_pixels=sum(count.ignored for count in counts),
        images=np.count_nonzero(pixels, axis=0),
        classes_per_image=np.count_nonzero(pixels, axis=1),
    )


def print_reports(reports: list[SplitReport], classes: ClassTable, console: Console | None = None) -> None:
    """Print the reports of the splits: a line for each split, a table of the classes, and the problems.

    Args:
      reports: one for each split.
      classes: of the data.
      console: where to print; by default standard output.
    """
    console = console or Console()
    for report in reports:
        console.print(_summary(report), highlight=False)
    console.print(_class_table(reports, classes))
    for report in reports:
        for problem in report.problems[:PRINTED_PROBLEMS]:
            console.print(Text(f"{report.split}: {one_line(problem)}", "red"), soft_wrap=True)
        for note in report.notes:
            console.print(Text(f"{report.split}: {one_line(note)}", "yellow"), soft_wrap=True)
        if len(report.problems) > PRINTED_PROBLEMS:
            console.print(f"{report.split}: {len(report.problems) - PRINTED_PROBLEMS} more problems", style="red")
    if not any(report.problems for report in reports):
        notes = any(report.notes for report in reports)
        console.print("No mistakes found; see the notes above." if notes else "No problems found.", style="green")


def _class_table(reports: list[SplitReport], classes: ClassTable) -> Table:
    """How frequent each class is in each split."""
    table = Table("id", "class", title="Share of the labeled pixels, and share of the images that hold the class")
    for report in reports:
        table.add_column(f"{report.split}\npixels", justify="right")
        table.add_column("\nimages", justify="right")
    for class_id, name in enumerate(classes.names):
        cells = []
        for report in reports:
            cells.append(_percent(report.pixels[class_id], report.pixels.sum()))
            cells.append(_percent(report.images[class_id], report.num_images))
        table.add_row(str(class_id), Text(name), *cells)
    return table


def _summary(report: SplitReport) -> str:
    if not report.num_images:
        return f"{report.split}: no images that can be read"
    (lowest, highest), (narrowest, widest) = report.sizes
    num_pixels = report.pixels.sum() + report.ignored_pixels
    per_image = report.classes_per_image
    return (
        f"{report.split}: {report.num_images} images, {lowest} to {highest} pixels high and {narrowest} to {widest} "
        f"wide; {_percent(report.ignored_pixels, num_pixels)} of the pixels ignored; {per_image.min()} to "
        f"{per_image.max()} classes in an image, {per_image.mean():.1f} on average"
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if part else "-"
