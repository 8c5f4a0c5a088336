"""What predict.py does: segment photos or a video with a trained model and write the results."""

import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from fasseg_jax.data import data_classes
from fasseg_jax.data.images import PHOTO_EXTENSIONS, PhotoError, list_photos, open_photo, output_names
from fasseg_jax.inference.explain import explain
from fasseg_jax.inference.explanation_page import draw_explanation
from fasseg_jax.inference.segmenter import Segmentation, Segmenter
from fasseg_jax.inference.video import CAMERA, VideoSummary, segment_video
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.compilation import CompileTimer
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.preemption import Interruption
from fasseg_jax.visualization.overlay import draw_overlay

__all__ = ["PredictionOptions", "find_photos", "load_segmenter", "segment_film", "segment_photos"]

WARNING = "Untrained weights: this picture shows that the installation works; the classes mean nothing."


@dataclasses.dataclass(frozen=True)
class PredictionOptions:
    """What to predict, with which model, how, and what to write.

    Attributes:
      output: the folder for the results.
      input: a photo, a folder of photos, a video or a camera; without it a generated picture.
      checkpoint: the folder of a checkpoint, or of a run; without it an untrained model.
      config: the configuration of the untrained model.
      multi_scale: average over several sizes and their mirror images.
      sliding_window: pass windows over the photo.
      short_side: in place of the configuration's, in pixels.
      scores: also write the scores.
      explain: also write a page that shows what the decoder looked at.
    """

    output: Path
    input: str | None = None
    checkpoint: str | None = None
    config: ConfigDict | None = None
    multi_scale: bool = False
    sliding_window: bool = False
    short_side: int | None = None
    scores: bool = False
    explain: bool = False

    @property
    def untrained(self) -> bool:
        """Whether the model is an untrained one."""
        return self.checkpoint is None

    @property
    def from_camera(self) -> bool:
        """Whether the input is a camera."""
        return self.input is not None and self.input.startswith(CAMERA)


def find_photos(options: PredictionOptions) -> dict[Path, Path]:
    """The photos to segment, {path: name of the results below the output folder}."""
    output = options.output
    if not options.input:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "generated.png"
        Image.fromarray(generated_photo()).save(path)
        print(f"No --input: segmenting a generated picture, {path}.")
        return {path: Path(path.stem)}
    source = Path(options.input)
    if not source.exists():
        raise ValueError(f"--input {source}: there is no such file or folder")
    if not source.is_dir():
        return {source: Path(source.stem)}
    if output.resolve() == source.resolve():
        raise ValueError("--output must not be the --input folder itself, whose photos the results would join")
    found = list_photos(source, exclude=output)
    if not found.paths:
        raise ValueError(f"--input {source} holds no photos ({', '.join(sorted(PHOTO_EXTENSIONS))})")
    print(f"{len(found.paths)} photos in {source}, {found.ignored} other files ignored.")
    names = output_names([path.relative_to(source) for path in found.paths])
    return dict(zip(found.paths, names, strict=True))


def load_segmenter(options: PredictionOptions) -> Segmenter:
    """The model of --checkpoint, or an untrained one, that predicts photos as the flags say."""
    changes = inference_changes(options)
    if options.checkpoint:
        return Segmenter.from_checkpoint(options.checkpoint, inference=changes)
    print("UNTRAINED: drawing random weights; the classes found will mean nothing.")
    config = options.config
    config.inference.update(changes)
    variables = jax.jit(lambda: initial_variables(build_model(config.model), seed=0))()
    return Segmenter(config, variables, data_classes(config.data))


def inference_changes(options: PredictionOptions) -> dict[str, Any]:
    """The fields of `config.inference` that the flags set."""
    changes = {}
    if options.multi_scale:
        changes["mode"] = "multi_scale"
    if options.sliding_window:
        changes["mode"] = "sliding"
    if options.short_side is not None:
        changes["sliding"] = {"short_side": options.short_side}
    if options.short_side:
        changes["short_side"] = options.short_side
    return changes


def segment_photos(segmenter: Segmenter, photos: dict[Path, Path], options: PredictionOptions) -> list[Path]:
    """Segment all photos and write the results; returns those that could not be read."""
    compiling = CompileTimer()
    unreadable, seconds = [], []
    for path, name in tqdm(photos.items(), unit="photo", disable=None):
        try:
            image = open_photo(path)
        except PhotoError as error:
            unreadable.append(path)
            tqdm.write(f"predict.py: skipped {error}", file=sys.stderr)
            continue
        compiled_before, start = compiling.seconds, time.perf_counter()
        result = segmenter(image, scores=options.scores)
        compiled = compiling.seconds - compiled_before
        seconds.append(time.perf_counter() - start - compiled)
        if compiled > 1:
            height, width = result.labels.shape
            tqdm.write(f"{width} x {height} pixels: {compiled:.1f} s to compile or load the program for this size")
        write_result(image, result, segmenter, options.output / name, options)
    if seconds:
        print(
            f"Photos segmented: {len(seconds)}, {np.mean(seconds):.2f} s each; {len(segmenter.input_shapes)} shapes of "
            f"the network's input, {compiling.seconds:.1f} s to compile or load its programs."
        )
        print(f"Results in {options.output}.")
    return unreadable


def segment_film(segmenter: Segmenter, options: PredictionOptions) -> VideoSummary:
    """Segment a video, or what a camera sees until it is stopped."""
    if options.from_camera:
        print("Ctrl-C ends the film.")
    interruption = Interruption(together=False)
    warning = WARNING if options.untrained else None
    summary = segment_video(segmenter, options.input, options.output, warning=warning, stopped=interruption.requested)
    rate = summary.frames / summary.seconds
    print(f"Frames segmented: {summary.frames}, {rate:.2f} a second, compilation included. Sound is not kept.")
    if summary.frames:
        print(f"The film is {summary.path}.")
    if summary.damaged:
        print(f"{summary.damaged} frames were damaged: the decoder has filled in parts of them.")
    return summary


def write_result(
    image: np.ndarray, result: Segmentation, segmenter: Segmenter, name: Path, options: PredictionOptions
) -> None:
    """Write the label map, the overlay and what else is asked for of one photo; `name` is their path's beginning."""
    name.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result.labels).save(f"{name}_labels.png")
    warning = WARNING if options.untrained else None
    overlay = draw_overlay(image, result.labels, segmenter.classes, warning)
    overlay.save(f"{name}_overlay.png", compress_level=1)  # photos hardly compress: a third of the time
    if options.explain:
        explanation = explain(segmenter, image, result.labels)
        page = draw_explanation(explanation, image, result.labels, segmenter.classes, name.name, warning)
        page.save(f"{name}_explanation.png")
    if options.scores:
        np.save(f"{name}_scores.npy", result.scores.astype(np.float16))


def generated_photo(height: int = 512, width: int = 683) -> np.ndarray:
    """A picture of textured discs before a shaded background, uint8 RGB, the same each time."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.stack([90 + 80 * y / height, 130 + 50 * x / width, 210 - 120 * y / height], axis=-1)
    for _ in range(9):
        center_y, center_x, radius = rng.uniform((0, 0, 40), (height, width, 130))
        frequency_y, frequency_x = rng.uniform(-0.4, 0.4, 2)
        texture = 25 * np.sin(frequency_y * y + frequency_x * x)[..., None] + rng.uniform(30, 225, 3)
        inside = (y - center_y) ** 2 + (x - center_x) ** 2 < radius**2
        picture[inside] = texture[inside]
    return np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
