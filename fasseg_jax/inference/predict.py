"""A prediction from its options to its files: what predict.py does."""

import contextlib
import dataclasses
import shlex
import sys
import time
from typing import Any

import jax
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from fasseg_jax.data import data_classes
from fasseg_jax.data.images import PHOTO_EXTENSIONS, PhotoError, list_photos, output_names
from fasseg_jax.inference.generated_photo import generate_photo
from fasseg_jax.inference.label_files import LabelFiles
from fasseg_jax.inference.photo_files import ResultFiles, segment_files
from fasseg_jax.inference.photo_progress import PhotoProgress
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.video import CAMERA, VideoSummary, segment_video
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.agreement import fail_together
from fasseg_jax.runtime.buckets import SCHEME
from fasseg_jax.runtime.command_line import one_line, other_program, program_name
from fasseg_jax.runtime.compilation import CompileTimer
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path, local_copy, local_folder, make_path, remove_folder, write_atomically
from fasseg_jax.runtime.preemption import Interruption

__all__ = [
    "PhotosOutcome",
    "PredictionOptions",
    "find_photos",
    "load_segmenter",
    "segment_camera_or_video",
    "segment_photos",
]

WARNING = "Untrained weights: this picture shows that the installation works; the classes mean nothing."


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
    """What to predict, with which model, and what to write.

    Attributes:
      output: folder for the results; made if absent.
      input: a photo, a folder of photos, a video or a camera; by default a generated picture.
      checkpoint: folder of a checkpoint, or of a run, whose best checkpoint is taken.
      untrained: configuration of an untrained model, in place of a checkpoint.
      mode: `config.inference.mode`, if it is to differ from the configuration's.
      short_side: length in pixels to which a photo's shorter side is resized first, if it is to differ from the
        configuration's; 0, in mode "sliding", keeps the photo's size.
      round_to: `config.inference.round_to`, if it is to differ from the configuration's.
      dtype: `config.model.dtype`, likewise.
      scores: also write the scores.
      explain: also write a page that shows what the decoder looks at.
      write_labels: also write the predictions for this annotation tool, one of `label_files.LABEL_FORMATS`.
    """

    output: Path
    input: str | None = None
    checkpoint: str | None = None
    untrained: ConfigDict | None = None
    mode: str | None = None
    short_side: int | None = None
    round_to: int | None = None
    dtype: str | None = None
    scores: bool = False
    explain: bool = False
    write_labels: str | None = None

    @property
    def warning(self) -> str | None:
        """A sentence for every picture, if the model is untrained."""
        return WARNING if self.untrained is not None else None

    @property
    def inference(self) -> dict[str, Any]:
        """The fields of `config.inference` to change."""
        changes: dict[str, Any] = {}
        if self.mode is not None:
            changes["mode"] = self.mode
        if self.short_side is not None:
            changes["sliding"] = {"short_side": self.short_side}
        if self.short_side:
            changes["short_side"] = self.short_side
        if self.round_to is not None:
            changes["round_to"] = self.round_to
        return changes


def find_photos(options: PredictionOptions) -> dict[Path, Path]:
    """Find the photos to segment: {path: name of its results below the output folder}.

    Raises:
      ValueError: there is no such photo or folder, or the folder holds no photos.
    """
    output = options.output
    if not options.input:
        path = output / "generated.png"
        with write_atomically(path) as partial:
            Image.fromarray(generate_photo()).save(partial)
        print(f"No --input: segmenting a generated picture, {path}.")
        return {path: Path(path.stem)}
    source = make_path(options.input)
    if not source.exists():
        raise ValueError(f"--input {source}: there is no such file or folder")
    if not source.is_dir():
        return {source: Path(source.stem)}
    if output.resolve() == source.resolve():
        raise ValueError("--output must not be the --input folder, because results would mix with photos")
    found = list_photos(source, exclude=output)
    if not found.paths:
        raise ValueError(f"--input {source} holds no photos ({', '.join(sorted(PHOTO_EXTENSIONS))})")
    print(f"{len(found.paths)} photos in {source}, {found.ignored} other files ignored.")
    names = output_names([path.relative_to(source) for path in found.paths])
    return dict(zip(found.paths, names, strict=True))


def load_segmenter(options: PredictionOptions, devices: list[jax.Device]) -> Segmenter:
    """Load the checkpoint, or make an untrained model, and set how it predicts.

    Args:
      options: which model, and how.
      devices: this host's, to compute on.

    Raises:
      ValueError, OSError: there is no such checkpoint, or a field of the configuration is not allowed.
    """
    if options.untrained is None:
        assert options.checkpoint is not None, "a checkpoint or an untrained model"
        return Segmenter.from_checkpoint(
            options.checkpoint, inference=options.inference, dtype=options.dtype, devices=devices
        )
    print("UNTRAINED: the weights are random, and the classes found mean nothing.")
    config = options.untrained
    config.inference.update(options.inference)
    config.model.dtype = options.dtype or config.model.dtype
    variables = jax.jit(lambda: initial_variables(build_model(config.model), seed=0))()
    return Segmenter(config, variables, data_classes(config.data), devices=devices)


@dataclasses.dataclass(frozen=True)
class PhotosOutcome:
    """How the prediction of photos ended.

    Attributes:
      interrupted: whether it stopped before its end; the same options do what is left.
      unreadable: the photos that could not be read, or whose names are too long to name results.
    """

    interrupted: bool
    unreadable: list[str]


def segment_photos(segmenter: Segmenter, photos: dict[Path, Path], options: PredictionOptions) -> PhotosOutcome:
    """Segment photos and write the results. All hosts must call this; each does its share.

    Args:
      segmenter: the model, with classes.
      photos: from `find_photos`.
      options: what to write, and where.

    Raises:
      ValueError: another host was started otherwise.
      OSError: the results cannot be written.
      FloatingPointError: the network's output is not finite.
    """
    compiling = CompileTimer()
    label_files = None
    if options.write_labels:
        assert segmenter.classes is not None, "annotations name classes"
        label_files = LabelFiles(options.write_labels, options.output, segmenter.classes)
        remove_folder(options.output / ".progress")
    writes = {name: getattr(options, name) for name in ("scores", "explain", "warning", "write_labels")}
    with PhotoProgress(options.output, segmenter, photos, writes) as progress:
        if progress.num_done:
            print(f"{progress.num_done} of them are done.")
        begin = time.perf_counter()
        with fail_together():  # the others finish their share first, which is kept
            of_share = _segment_share(segmenter, progress, options, label_files)
        seconds = max(time.perf_counter() - begin - compiling.seconds, 0)
        gathered = all_gather_objects([*of_share, seconds])
        num_done, unreadable = sum(host[0] for host in gathered), [path for host in gathered for path in host[1]]
        if any(stopped for _, _, stopped, _ in gathered):
            done = progress.num_done + num_done
            print(f"Interrupted: {done} of {len(photos)} photos are done. The same command does the others.")
            return PhotosOutcome(interrupted=True, unreadable=unreadable)
        progress.finish()
    if label_files and num_done:
        label_files.finish()
        print(f"Labels to correct are in {label_files.folder}; to_correct.csv lists the least certain photos first.")
        command = _import_command(label_files.folder, options)
        print(f"  {command}")
        if SCHEME in command:
            print("Imports read and write local folders: first copy what is in a bucket, and name the copies.")
    if num_done:
        seconds = max(host[3] for host in gathered)
        print(
            f"Photos segmented: {num_done}, {seconds / num_done:.3f} s each with reading and writing; "
            f"{len(segmenter.input_shapes)} shapes of the network's input, {compiling.seconds:.1f} s to compile or "
            "load programs."
        )
        print(f"Results are in {options.output}.")
    return PhotosOutcome(interrupted=False, unreadable=unreadable)


def _segment_share(
    segmenter: Segmenter, progress: PhotoProgress, options: PredictionOptions, label_files: LabelFiles | None
) -> tuple[int, list[str], bool]:
    """Segment this host's photos: how many are done, those that cannot be read, whether it was interrupted."""
    num_done, unreadable = 0, []
    interruption = Interruption(together=False)
    files = ResultFiles(options.output, options.scores, options.explain, options.warning)
    with tqdm(total=len(progress.share), unit="photo", disable=None) as bar:

        def skip(path: Path, error: PhotoError) -> None:
            unreadable.append(str(path))
            tqdm.write(f"{program_name()}: skipped {one_line(error)}", file=sys.stderr)
            bar.update()

        segmented = segment_files(
            segmenter,
            progress.share,
            files,
            skip=skip,
            stopped=interruption.requested,
            uncertainty=label_files is not None,
        )
        for photo, result in segmented:
            if label_files:
                file_name = _path_in_input(photo.path, options)
                label_files.add(photo.path, photo.name, file_name, result.labels, result.uncertainty or 0.0)
            progress.add(photo.path, photo.name)
            num_done += 1
            bar.update()
    return num_done, unreadable, num_done + len(unreadable) < len(progress.share)


def _path_in_input(path: Path, options: PredictionOptions) -> str:
    folder = make_path(options.input) if options.input else options.output
    return path.relative_to(folder).as_posix() if path != folder and path.is_relative_to(folder) else path.name


def _import_command(labels: Path, options: PredictionOptions) -> str:
    """The command that makes a data set of corrected labels, with the ids and colors of the model's classes."""
    photos = make_path(options.input) if options.input else options.output
    command = ["--input", str(labels), "--output", "DATA"]
    if options.write_labels == "coco":
        command += ["--photos", str(photos if photos.is_dir() else photos.parent)]
    command += ["--classes", str(options.output / "classes.csv"), "--unlabeled", "ignore"]
    return f"{other_program('import')} {shlex.join(command)}"


def segment_camera_or_video(segmenter: Segmenter, source: str, options: PredictionOptions) -> VideoSummary:
    """Segment a video, or a camera's images until SIGTERM or Ctrl-C, and print a summary.

    Raises:
      VideoError: the video or camera cannot be read.
    """
    if source.startswith(CAMERA):
        print("Ctrl-C ends the video.")
    interruption = Interruption(together=False)
    input_file = contextlib.nullcontext(source) if source.startswith(CAMERA) else local_copy(make_path(source))
    with input_file as file, local_folder(options.output) as folder:
        summary = segment_video(segmenter, str(file), folder, warning=options.warning, stopped=interruption.requested)
    rate = summary.frames / summary.seconds
    print(f"Frames segmented: {summary.frames}, {rate:.2f} per second, compilation included. Sound is left out.")
    if summary.frames:
        print(f"The video is {options.output / summary.path.name}.")
    for note in summary.notes:
        print(note)
    if summary.damaged:
        print(f"{summary.damaged} frames were damaged: the decoder has filled in parts of them.")
    return summary
