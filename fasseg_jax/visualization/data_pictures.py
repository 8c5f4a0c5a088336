"""Pictures of the data before a training: augmented samples as the network gets them, and validation photos."""

from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.check import SplitReport
from fasseg_jax.data.classes import DataError
from fasseg_jax.data.pipeline import TrainingBatches
from fasseg_jax.data.samples import Source
from fasseg_jax.data.sources.registry import find_source
from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.visualization.contact_sheet import SheetSample, draw_contact_sheet, samples_per_row

__all__ = ["write_data_pictures"]

AT_LEAST = 12  # samples on a sheet; as many more as fill the last row
PHOTO_ROOM = (1200, 1600)  # (height, width) of a usual photo, for the validation split


def write_data_pictures(config: ConfigDict, reports: list[SplitReport], folder: Path) -> list[str]:
    """Write FOLDER/training.png and FOLDER/validation.png.

    The first shows the first samples of a training with this configuration, after augmentation; the second, photos
    spread over the split, as they are. Samples that cannot be read are left out.

    Args:
      config: the whole configuration.
      reports: of both splits, from `check_data`.
      folder: made if absent.

    Returns:
      A line for each split: which file was written, or why none was.

    Raises:
      WriteError: a file cannot be written.
    """
    lines = []
    for report in reports:
        try:
            source = find_source(config.data, report.split)
            if not len(source):
                raise DataError(source.problems[0] if source.problems else "the split has no photos")
            if report.split == "training":
                size = tuple(config.augmentation.crop)
                title = f"Training as the network gets it, in crops of {size[1]} x {size[0]} pixels"
                samples = _augmented(source, config)
            else:
                size, title, samples = PHOTO_ROOM, "Validation photos", _photos(source)
            sheet = draw_contact_sheet(title, _short_names(samples, config.data.root), source.classes, report, size)
        except DataError as error:
            lines.append(f"{report.split}: no picture, because {error}")
            continue
        if sheet is None:
            lines.append(f"{report.split}: no picture, because none of its first samples can be read")
            continue
        file = folder / f"{report.split}.png"
        with write_atomically(file) as partial:
            sheet.save(partial)
        lines.append(f"{report.split}: samples with their labels are in {file}")
    return lines


def _augmented(source: Source, config: ConfigDict) -> Iterator[SheetSample]:
    """The first samples of a training, by the training's own pipeline."""
    config = config.copy_and_resolve_references()
    config.train.update(batch_size=1, steps=_number(tuple(config.augmentation.crop)))
    config.data.max_targets = len(source.classes)  # `check_data` says if a crop may hold more than are allowed
    batches = TrainingBatches(source, config, config.train.seed)
    for step in range(len(batches)):
        try:
            batch = batches[step]
        except DataError:  # `check_data` names the file
            continue
        yield SheetSample(batch.names[0], batch.images[0], batch.labels[0])


def _photos(source: Source) -> Iterator[SheetSample]:
    """Photos spread over the split."""
    for index in np.unique(np.linspace(0, len(source) - 1, _number(PHOTO_ROOM)).astype(int)).tolist():
        try:
            sample = source[index]
        except DataError:
            continue
        yield SheetSample(sample.name, sample.image, sample.labels)


def _number(size: tuple[int, int]) -> int:
    """How many samples of a size fill rows, at least `AT_LEAST`."""
    columns = samples_per_row(size)
    return -(-AT_LEAST // columns) * columns


def _short_names(samples: Iterator[SheetSample], root: str) -> Iterator[SheetSample]:
    """Names as paths below the root of the data."""
    folder = Path(root).expanduser()
    for sample in samples:
        path = Path(sample.name)
        name = path.relative_to(folder).as_posix() if root and path.is_relative_to(folder) else sample.name
        yield SheetSample(name, sample.image, sample.labels)
