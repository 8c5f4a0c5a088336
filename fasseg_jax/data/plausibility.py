"""Signs that label files mean something else than the configuration says, although each of them can be read."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.labels import count_labels
from fasseg_jax.data.samples import Orientation, Sample, Source
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["LabelCounts", "count_sample", "find_mistakes", "find_oddities", "look_at_labels"]

LOOKED_AT = 1000  # samples, before a training; a class that none of them holds is worth a line
NAMED = 8  # classes in a line


@dataclasses.dataclass(frozen=True)
class LabelCounts:
    """What one sample holds.

    Attributes:
      name: of the sample.
      size: (height, width) in pixels.
      pixels: (K,) int64, the number of pixels of each class.
      ignored: the number of ignored pixels.
      orientation: how the labels lie on the photo.
    """

    name: str
    size: tuple[int, int]
    pixels: np.ndarray
    ignored: int
    orientation: Orientation


def count_sample(sample: Sample, num_classes: int, ignore_label: int) -> LabelCounts:
    """Count the labels of a sample."""
    counts = count_labels(sample.labels)
    height, width = sample.labels.shape
    return LabelCounts(
        sample.name, (height, width), counts[:num_classes], int(counts[ignore_label]), sample.orientation
    )


def find_mistakes(samples: list[LabelCounts], classes: ClassTable, data: ConfigDict) -> list[str]:
    """Find what makes a split useless, one line each, with what to do.

    Args:
      samples: all of the split that can be read.
      classes: of the data.
      data: `config.data`.
    """
    if not samples:
        return []
    present, ignored = _sum(samples, len(classes))
    if not present.any():
        return [
            f"all pixels of all label maps are ignored (config.data.ignore_label = {data.ignore_label}"
            f"{', and 0 by config.data.reduce_zero_label' * bool(data.reduce_zero_label)}): save the classes as the "
            "ids of the class table, or set these fields"
        ]
    if len(classes) == 1:
        rest = "ignored" if ignored else "absent"
        return [
            f"there is one class, {classes.names[0]!r}, and all other pixels are {rest}, so that it would be predicted "
            "everywhere: make the rest of the photo a class of its own, with its own id and line in the class table"
            f"{', without config.data.reduce_zero_label' * bool(data.reduce_zero_label)}"
        ]
    if present.sum() == 1:
        only = int(np.flatnonzero(present)[0])
        others = f" and ignored pixels ({data.ignore_label})" if ignored else ""
        masks = "; in masks of 0 and 255, save 255 as 1" if ignored and data.ignore_label == 255 else ""
        return [
            f"all label maps hold only the class {only} {classes.names[only]!r}{others}, so that there is nothing to "
            f"tell apart: save each class as its id in the class table{masks}"
        ]
    return []


def find_oddities(samples: list[LabelCounts], classes: ClassTable, data: ConfigDict) -> list[str]:
    """Find what may be a mistake or may be meant, one line each; see `find_mistakes`."""
    present, _ = _sum(samples, len(classes))
    oddities = _orientations(samples)
    if samples and not present.all():
        oddities.append(f"no label map holds {absent_classes(present, classes, data)}")
    empty = [sample.name for sample in samples if not sample.pixels.any()]
    if empty and len(empty) < len(samples):
        oddities.append(f"{_number(empty, 'label map holds', 'label maps hold')} ignored pixels only, e.g. {empty[0]}")
    return oddities


def absent_classes(present: np.ndarray, classes: ClassTable, data: ConfigDict) -> str:
    """Name the classes that do not occur, and say what to do."""
    absent = np.flatnonzero(~present)
    if absent.tolist() == [0] and classes.names[0].lower() == "background":
        return "the class 0 'background': no harm if all is annotated (an import with --unlabeled=ignore leaves it out)"
    names = ", ".join(f"{class_id} {classes.names[class_id]!r}" for class_id in absent[:NAMED])
    more = f" and {len(absent) - NAMED} others" if len(absent) > NAMED else ""
    hint = ""
    if data.source == "folder" and data.reduce_zero_label and not present[-1]:
        hint = "; if ids in label files begin at 0, leave out config.data.reduce_zero_label"
    elif data.source == "folder" and not data.reduce_zero_label and not present[0]:
        hint = "; if 0 stands for nothing in label files, set config.data.reduce_zero_label=True"
    kind = "class" if len(absent) == 1 else "classes"
    return f"the {kind} {names}{more}: check the ids in label files, or take the {kind} out of the class table{hint}"


def look_at_labels(source: Source, data: ConfigDict) -> list[str]:
    """Look at label maps before a training, until all classes have been seen or `LOOKED_AT` maps.

    If at most one class has been seen, all label maps are looked at.

    Args:
      source: the training split; samples that cannot be read are left out.
      data: `config.data`.

    Returns:
      What may be a mistake, one line each.

    Raises:
      DataError: the split is useless; the message says why.
    """
    num_classes = len(source.classes)

    def count(index: int) -> LabelCounts | None:
        try:
            return count_sample(source[index], num_classes, data.ignore_label)
        except DataError:  # the training names the file when it comes to it
            return None

    samples: list[LabelCounts] = []
    present = np.zeros(num_classes, bool)
    order = np.random.default_rng(0).permutation(len(source)).tolist()  # files of a class often lie together
    for _, sample in map_ahead(count, order, data.num_threads):
        if sample is not None:
            samples.append(sample)
            present |= sample.pixels > 0
        if num_classes > 1 and (present.all() or (present.sum() > 1 and len(samples) >= LOOKED_AT)):
            break
    mistakes = find_mistakes(samples, source.classes, data)
    if mistakes:
        raise DataError(f"training: {mistakes[0]}")
    if not samples or present.all():
        return []
    looked_at = f"of {len(samples)} label maps, no one" if len(samples) < len(source) else "no label map"
    return [f"training: {looked_at} holds {absent_classes(present, source.classes, data)}"]


def _sum(samples: list[LabelCounts], num_classes: int) -> tuple[np.ndarray, int]:
    """Which classes occur, (K,) bool, and the number of ignored pixels."""
    pixels = sum((sample.pixels for sample in samples), np.zeros(num_classes, np.int64))
    return pixels > 0, sum(sample.ignored for sample in samples)


def _orientations(samples: list[LabelCounts]) -> list[str]:
    """What to say of photos that EXIF turns."""
    names: dict[str, list[str]] = {"viewer": [], "stored": [], "either": []}
    for sample in samples:
        if sample.orientation != "none":
            names[sample.orientation].append(sample.name)
    lines = []
    if either := names["either"]:
        stored = len(names["stored"])
        evidence = f" ({stored} other label maps of this split are)" if stored else ""
        lines.append(
            f"{_number(either, 'photo has an EXIF orientation that its', 'photos have an EXIF orientation that their')}"
            f" label map's size cannot confirm, e.g. {either[0]}: labels are taken as drawn on the turned photo, which "
            "predict.py shows; if they are drawn on the stored pixels"
            f"{evidence}, set --config.data.label_orientation=stored"
        )
    if names["stored"] and names["viewer"]:
        lines.append(
            f"label maps of photos with an EXIF orientation differ: {len(names['viewer'])} have the size of the turned "
            f"photo (e.g. {names['viewer'][0]}), {len(names['stored'])} that of the stored one "
            f"(e.g. {names['stored'][0]}); look at a few"
        )
    return lines


def _number(names: list[str], singular: str, plural: str) -> str:
    return f"{len(names)} {singular if len(names) == 1 else plural}"
