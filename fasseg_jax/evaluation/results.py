"""The files of an evaluation: numbers, pictures, the report."""

import csv
import math
from pathlib import PurePath
from typing import Any

from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.data import Source
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.evaluate import ImageResult
from fasseg_jax.evaluation.metrics import Counts, SegmentationMetrics, image_score, metrics_of
from fasseg_jax.evaluation.report import PicturedImage, write_report
from fasseg_jax.evaluation.tables import write_csv, write_json
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.csv_text import csv_text
from fasseg_jax.runtime.files import Path, remove_folder, write_atomically
from fasseg_jax.visualization.confusion_matrix import draw_confusion
from fasseg_jax.visualization.overlay import draw_comparison

__all__ = [
    "default_output",
    "describe_inference",
    "picture_images",
    "rank",
    "write_images",
    "write_numbers",
    "write_pictures",
]


def rank(results: list[ImageResult], num_classes: int) -> list[tuple[float, ImageResult]]:
    """Score and result of each image, the worst first; images whose pixels are all ignored are left out."""
    scored = [(image_score(result.counts(num_classes)), result) for result in results]
    return sorted((pair for pair in scored if not math.isnan(pair[0])), key=lambda pair: (pair[0], pair[1].index))


def picture_images(
    segmenter: Segmenter, source: Source, ranked: list[tuple[float, ImageResult]], names: dict[int, str]
) -> list[PicturedImage]:
    """Read and predict a few images again, for pictures of them in the same order.

    Args:
      segmenter: the model.
      source: the samples.
      ranked: score and result of each image.
      names: names to show, by the index of the sample.
    """
    samples = {result.index: source[result.index] for _, result in ranked}
    labels = dict(segmenter.segment_all((index, sample.image) for index, sample in samples.items()))
    pictured = []
    for score, result in ranked:
        sample = samples[result.index]
        name = names[result.index]
        pictured.append(PicturedImage(name, score, sample.image, sample.labels, labels[result.index]))
    return pictured


def write_numbers(
    folder: Path, counts: Counts, metrics: SegmentationMetrics, classes: ClassTable, facts: dict[str, Any]
) -> None:
    """Write metrics.json (with `facts`), per_class.csv and confusion.png."""
    write_json(folder / "metrics.json", metrics, classes, facts)
    write_csv(folder / "per_class.csv", metrics, classes)
    with write_atomically(folder / "confusion.png") as partial:
        draw_confusion(counts.confusion, classes).save(partial)


def write_images(file: Path, results: list[ImageResult], names: dict[int, str], num_classes: int) -> None:
    """Write a row for each image as CSV: score (the mIoU of the single image), pixel accuracy and uncertainty.

    Score and accuracy are empty if all pixels are ignored; the uncertainty, if an earlier version did not measure it.
    """
    with (
        write_atomically(file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as lines,
    ):
        writer = csv.writer(lines)
        writer.writerow(["image", "score", "pixel_accuracy", "labelled_pixels", "uncertainty"])
        for result in sorted(results, key=lambda result: result.index):
            counts = result.counts(num_classes)
            values = (image_score(counts), metrics_of(counts).pixel_accuracy)
            cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
            uncertainty = "" if result.uncertainty is None else f"{result.uncertainty:.6f}"
            writer.writerow([csv_text(names[result.index]), *cells, counts.confusion.sum(), uncertainty])


def write_pictures(
    folder: Path,
    counts: Counts,
    metrics: SegmentationMetrics,
    classes: ClassTable,
    best: list[PicturedImage],
    worst: list[PicturedImage],
    facts: dict[str, str],
) -> None:
    """Write report.html, and worst/NUMBER_NAME.png for each of the worst images: photo, ground truth, prediction."""
    write_report(folder / "report.html", metrics, counts, classes, best, worst, facts)
    pictures = folder / "worst"
    remove_folder(pictures)  # of an earlier run
    for number, image in enumerate(worst, start=1):
        comparison = draw_comparison([(image.photo, image.truth, image.prediction)], classes)
        name = "_".join(PurePath(image.name).parts)
        with write_atomically(pictures / f"{number:03d}_{name}.png") as partial:
            Image.fromarray(comparison).save(partial)


def default_output(checkpoint: Path, config: ConfigDict) -> Path:
    """evaluation/CHECKPOINT-MODE, or evaluation/RUN-STEP-MODE, below the working directory."""
    checkpoint = checkpoint.resolve()
    names = [checkpoint.name]
    if checkpoint.parent.name == "checkpoints" and checkpoint.name.isdigit():
        names.insert(0, checkpoint.parent.parent.name)
    return Path("evaluation", "-".join([*names, config.inference.mode]))


def describe_inference(inference: ConfigDict) -> str:
    """The mode of `config.inference` and its sizes, in words."""
    if inference.mode == "multi_scale":
        sides, flip = inference.multi_scale.short_sides, inference.multi_scale.flip
        return f"multi-scale, shorter sides {', '.join(map(str, sides))}{', each also flipped' if flip else ''}"
    if inference.mode == "sliding":
        (height, width), short_side = inference.sliding.window, inference.sliding.short_side
        return f"windows of {width}x{height}, shorter side {short_side or 'as it is'}"
    return f"single-scale, shorter side {inference.short_side}, longer at most {inference.max_long_side}"
