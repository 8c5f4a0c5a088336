"""Segment a photo, all photos of a folder, a video or what a camera sees, with a trained model.

    python predict.py --checkpoint CHECKPOINT --input PHOTO_OR_FOLDER_OR_VIDEO --output FOLDER

Writes for each photo NAME_labels.png, the class id of every pixel (one channel, 8 bits, or 16 for more than 255
classes), and NAME_overlay.png, the classes in colour over the photo with a legend. Results of subfolders go to the same
subfolders of the output. To try an installation without weights:

    python predict.py --untrained --config configs/ade20k.py:r50 --output FOLDER

Photos are predicted as the checkpoint's configuration says, normally once, at its test size. --multi_scale averages
over several sizes and their mirror images: a little better, ten to twenty times slower. --sliding_window is for photos
much larger than what the network was trained on: windows of the size of a training crop pass over the photo in its own
size, or with --short_side in another.

--explain adds NAME_explanation.png for each photo: for the queries that matter most their mask, class and focus through
the decoder's layers, and the windows that HRCA chose.

A video (--input film.mp4) or camera (--input camera:0, until Ctrl-C) becomes NAME_overlay.mp4, without sound.

Exit status: 0 all done; 1 a photo or some frames could not be read (the others are done) or results not be written; 2
wrong usage; 75 a video was interrupted (the film goes as far as that).
"""

import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from PIL import Image
from tqdm import tqdm

from fasseg_jax.data import data_classes
from fasseg_jax.data.images import PHOTO_EXTENSIONS, PhotoError, list_photos, open_photo, output_names
from fasseg_jax.inference.explain import explain
from fasseg_jax.inference.explanation_page import draw_explanation
from fasseg_jax.inference.segmenter import Segmentation, Segmenter
from fasseg_jax.inference.video import CAMERA, VideoError, is_video, segment_video
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import CompileTimer, enable_compilation_cache
from fasseg_jax.runtime.devices import choose_device
from fasseg_jax.runtime.preemption import INTERRUPTED, Interruption
from fasseg_jax.visualization.overlay import draw_overlay

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint, or of a run of train.py.")
INPUT = flags.DEFINE_string(
    "input", None, "A photo, a folder that is searched for photos with its subfolders, a video, or a camera: camera:0."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results; made if absent.")
SCORES = flags.DEFINE_bool(
    "scores", False, "Also write NAME_scores.npy: (H, W, K) float16, 300 bytes a pixel for 150 classes."
)
EXPLAIN = flags.DEFINE_bool("explain", False, "Also write NAME_explanation.png: what the decoder looked at.")
MULTI_SCALE = flags.DEFINE_bool("multi_scale", False, "Average over several sizes of the photo and mirror images.")
SLIDING_WINDOW = flags.DEFINE_bool("sliding_window", False, "Pass overlapping windows over the photo.")
SHORT_SIDE = flags.DEFINE_integer(
    "short_side",
    None,
    "Resize a photo's shorter side to so many pixels before anything else, instead of what the configuration says; "
    "with --sliding_window 0 keeps its size.",
    lower_bound=0,
)
DEVICE = flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Where to compute; by default what JAX chooses.")
UNTRAINED = flags.DEFINE_bool(
    "untrained",
    False,
    "Use random weights instead of a checkpoint, to try an installation; without --input on a generated picture.",
)
CONFIG = config_flags.DEFINE_config_file("config", None, "The model for --untrained, e.g. configs/ade20k.py:r50.")

WARNING = "Untrained weights: this picture shows that the installation works; the classes mean nothing."


class UsageError(Exception):
    """The command line asks for something impossible; the message says what to change."""


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)  # without JAX's notes on the platforms that it lacks
    try:
        check_usage(argv)
        output = Path(OUTPUT.value)
        photos = {} if is_video(INPUT.value or "") else find_photos(output)
        device = choose_device(DEVICE.value)
        cache = enable_compilation_cache()
        segmenter = load_segmenter()
        if EXPLAIN.value and segmenter.config.inference.mode != "single":
            raise UsageError("--explain shows a prediction from a single view of the photo, not from several")
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=2)
    print(f"Computing on {device.device_kind} ({device.platform}).")
    print(f"For the first picture of each size the network is compiled; programs are kept in {cache}.")
    try:
        return segment_photos(segmenter, photos, output) if photos else segment_film(segmenter, output)
    except VideoError as error:
        return print_error(error, status=1)
    except OSError as error:
        return print_error(f"cannot write the results: {error}", status=1)
    except FloatingPointError as error:
        return print_error(error, status=1)


def check_usage(argv: list[str]) -> None:
    """Raise a `UsageError` for flags that do not go together."""
    if argv[1:]:
        raise UsageError(f"unexpected argument {argv[1]!r}; photos are given by --input")
    if not OUTPUT.value:
        raise UsageError("--output is needed: the folder for the results")
    if UNTRAINED.value == bool(CHECKPOINT.value):
        raise UsageError("give --checkpoint, or --untrained to try an installation with random weights")
    if UNTRAINED.value != (CONFIG.value is not None):
        raise UsageError("--untrained needs --config, and a checkpoint holds its own configuration")
    if not INPUT.value and not UNTRAINED.value:
        raise UsageError("--input is needed: a photo, a folder of photos, a video or a camera")
    if MULTI_SCALE.value and SLIDING_WINDOW.value:
        raise UsageError("--multi_scale and --sliding_window are two ways to predict a photo; give one")
    if SHORT_SIDE.value == 0 and not SLIDING_WINDOW.value:
        raise UsageError("--short_side 0, the photo's own size, goes with --sliding_window")
    if is_video(INPUT.value or ""):
        if SCORES.value or EXPLAIN.value:
            raise UsageError("--scores and --explain are for photos, not for videos")
        if not INPUT.value.startswith(CAMERA) and not Path(INPUT.value).is_file():
            raise UsageError(f"--input {INPUT.value}: there is no such file")
    if Path(OUTPUT.value).exists() and not Path(OUTPUT.value).is_dir():
        raise UsageError(f"--output {OUTPUT.value} is a file; give a folder")


def find_photos(output: Path) -> dict[Path, Path]:
    """The photos to segment, {path: name of the results below the output folder}."""
    if not INPUT.value:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "generated.png"
        Image.fromarray(generated_photo()).save(path)
        print(f"No --input: segmenting a generated picture, {path}.")
        return {path: Path(path.stem)}
    source = Path(INPUT.value)
    if not source.exists():
        raise UsageError(f"--input {source}: there is no such file or folder")
    if not source.is_dir():
        return {source: Path(source.stem)}
    if output.resolve() == source.resolve():
        raise UsageError("--output must not be the --input folder itself, whose photos the results would join")
    found = list_photos(source, exclude=output)
    if not found.paths:
        raise UsageError(f"--input {source} holds no photos ({', '.join(sorted(PHOTO_EXTENSIONS))})")
    print(f"{len(found.paths)} photos in {source}, {found.ignored} other files ignored.")
    names = output_names([path.relative_to(source) for path in found.paths])
    return dict(zip(found.paths, names, strict=True))


def load_segmenter() -> Segmenter:
    """The model of --checkpoint, or an untrained one, that predicts photos as the flags say."""
    changes = inference_changes()
    if CHECKPOINT.value:
        return Segmenter.from_checkpoint(CHECKPOINT.value, inference=changes)
    print("UNTRAINED: drawing random weights; the classes found will mean nothing.")
    config = CONFIG.value
    config.inference.update(changes)
    variables = jax.jit(lambda: initial_variables(build_model(config.model), seed=0))()
    return Segmenter(config, variables, data_classes(config.data))


def inference_changes() -> dict[str, Any]:
    """The fields of `config.inference` that the flags set."""
    changes = {}
    if MULTI_SCALE.value:
        changes["mode"] = "multi_scale"
    if SLIDING_WINDOW.value:
        changes["mode"] = "sliding"
    if SHORT_SIDE.value is not None:
        changes["sliding"] = {"short_side": SHORT_SIDE.value}
    if SHORT_SIDE.value:
        changes["short_side"] = SHORT_SIDE.value
    return changes


def segment_photos(segmenter: Segmenter, photos: dict[Path, Path], output: Path) -> int:
    """Segment all photos and write the results; returns the exit status."""
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
        result = segmenter(image, scores=SCORES.value)
        compiled = compiling.seconds - compiled_before
        seconds.append(time.perf_counter() - start - compiled)
        if compiled > 1:
            height, width = result.labels.shape
            tqdm.write(f"{width} x {height} pixels: {compiled:.1f} s to compile or load the program for this size")
        write_result(image, result, segmenter, output / name)
    if seconds:
        print(
            f"Photos segmented: {len(seconds)}, {np.mean(seconds):.2f} s each; {len(segmenter.input_shapes)} shapes of "
            f"the network's input, {compiling.seconds:.1f} s to compile or load its programs."
        )
        print(f"Results in {output}.")
    if unreadable:
        names = ", ".join(map(str, unreadable))
        return print_error(f"{len(unreadable)} of {len(photos)} photos could not be read: {names}", status=1)
    return 0


def segment_film(segmenter: Segmenter, output: Path) -> int:
    """Segment a video, or what a camera sees until it is stopped; returns the exit status."""
    from_camera = INPUT.value.startswith(CAMERA)
    if from_camera:
        print("Ctrl-C ends the film.")
    interruption = Interruption(together=False)
    warning = WARNING if UNTRAINED.value else None
    summary = segment_video(segmenter, INPUT.value, output, warning=warning, stopped=interruption.requested)
    rate = summary.frames / summary.seconds
    print(f"Frames segmented: {summary.frames}, {rate:.2f} a second, compilation included. Sound is not kept.")
    if summary.frames:
        print(f"The film is {summary.path}.")
    if summary.damaged:
        print(f"{summary.damaged} frames were damaged: the decoder has filled in parts of them.")
    if summary.lost:
        return print_error(f"{INPUT.value}: {summary.lost} frames could not be decoded and are left out", status=1)
    return INTERRUPTED if summary.stopped and not from_camera else 0


def write_result(image: np.ndarray, result: Segmentation, segmenter: Segmenter, name: Path) -> None:
    """Write the label map, the overlay and what else is asked for of one photo; `name` is their path's beginning."""
    name.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(result.labels).save(f"{name}_labels.png")
    warning = WARNING if UNTRAINED.value else None
    overlay = draw_overlay(image, result.labels, segmenter.classes, warning)
    overlay.save(f"{name}_overlay.png", compress_level=1)  # photos hardly compress: a third of the time
    if EXPLAIN.value:
        explanation = explain(segmenter, image, result.labels)
        page = draw_explanation(explanation, image, result.labels, segmenter.classes, name.name, warning)
        page.save(f"{name}_explanation.png")
    if SCORES.value:
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


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
