"""Photos of a folder, from files to files: threads read ahead and write, while the devices compute."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image

from fasseg_jax.data.images import PhotoError, open_photo
from fasseg_jax.inference.explain import explain
from fasseg_jax.inference.explanation_page import draw_explanation
from fasseg_jax.inference.segmenter import Segmentation, Segmenter
from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.runtime.read_ahead import map_ahead
from fasseg_jax.visualization.overlay import draw_overlay

__all__ = ["PhotoFile", "ResultFiles", "segment_files"]

LONGEST_NAME = 255  # bytes, on the file systems of Linux, macOS and Windows
BATCH_SIZE = 8  # photos of one shape that a GPU, or a chip of a TPU, computes together, at most


@dataclasses.dataclass(frozen=True)
class ResultFiles:
    """Where the results of photos go, and what is written besides labels and overlays.

    Attributes:
      folder: of the results.
      scores: also write the scores.
      explain: also write a page that shows what the decoder looks at.
      warning: a sentence for every picture.
    """

    folder: Path
    scores: bool = False
    explain: bool = False
    warning: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class PhotoFile:
    """A photo, read. Messages name it by its path.

    Attributes:
      path: of its file.
      name: of its results, below the folder of the results.
      image: uint8 RGB, (H, W, 3).
    """

    path: Path
    name: Path
    image: np.ndarray

    @classmethod
    def read(cls, path: Path, name: Path) -> "PhotoFile":
        """Read a photo; raises a `PhotoError` if it cannot be read, or its name is too long for those of results."""
        if len(os.fsencode(f"{name.name}_explanation.png")) > LONGEST_NAME:
            raise PhotoError(f"{path}: the name is too long for those of the results; rename the photo")
        return cls(path, name, open_photo(path))

    def __str__(self) -> str:
        return str(self.path)


def segment_files(
    segmenter: Segmenter,
    photos: Mapping[Path, Path],
    files: ResultFiles,
    *,
    skip: Callable[[Path, PhotoError], None],
    stopped: Callable[[], bool] = lambda: False,
    uncertainty: bool = False,
) -> Iterator[tuple[PhotoFile, Segmentation]]:
    """Segment photos and write their results; yield each when it is written, in any order.

    Args:
      segmenter: the model, with classes.
      photos: {path: name of its results}.
      files: what to write.
      skip: called, in the caller's thread, with the path and the error of each photo that cannot be read.
      stopped: whether to compute no further photos; those that are computed are still written.
      uncertainty: also compute the uncertainty of each photo.

    Raises:
      WriteError: a result cannot be written.
      FloatingPointError: the network's output is not finite; the message names the photo.
    """

    def read(item: tuple[Path, Path]) -> PhotoFile | PhotoError:
        try:
            return PhotoFile.read(*item)
        except PhotoError as error:
            return error

    def images() -> Iterator[tuple[PhotoFile, np.ndarray]]:
        for (path, _), photo in map_ahead(read, photos.items()):
            if isinstance(photo, PhotoError):
                skip(path, photo)
            else:
                yield photo, photo.image

    batch_size = min(BATCH_SIZE, max(1, len(photos) // segmenter.num_devices))
    computed = segmenter.results(images(), batch_size, scores=files.scores, uncertainty=uncertainty)
    wanted = itertools.takewhile(lambda _: not stopped(), computed)
    explained = ((*found, _explanation(segmenter, *found, files) if files.explain else None) for found in wanted)
    for (photo, result, _), _ in map_ahead(functools.partial(_write, segmenter, files), explained, eager=True):
        yield photo, result


def _explanation(segmenter: Segmenter, photo: PhotoFile, result: Segmentation, files: ResultFiles) -> Image.Image:
    assert segmenter.classes is not None, "the page names classes"
    explanation = explain(segmenter, photo.image, result.labels)
    return draw_explanation(explanation, photo.image, result.labels, segmenter.classes, photo.name.name, files.warning)


def _write(segmenter: Segmenter, files: ResultFiles, found: tuple[PhotoFile, Segmentation, Image.Image | None]) -> None:
    """Write the files of one photo."""
    photo, result, explanation = found
    stem = files.folder / photo.name
    assert segmenter.classes is not None, "the overlay shows classes"

    def file(ending: str) -> Path:
        return stem.with_name(f"{stem.name}_{ending}")

    _save(Image.fromarray(result.labels), file("labels.png"))
    overlay = draw_overlay(photo.image, result.labels, segmenter.classes, files.warning)
    _save(overlay, file("overlay.png"), compression=1)  # a third of the time, for hardly more bytes
    if explanation is not None:
        _save(explanation, file("explanation.png"))
    if result.scores is not None:
        with write_atomically(file("scores.npy")) as partial:
            np.save(partial, result.scores.astype(np.float16))


def _save(picture: Image.Image, file: Path, compression: int = 6) -> None:
    with write_atomically(file) as partial:
        picture.save(partial, compress_level=compression)
