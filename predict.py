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

from pathlib import Path

from absl import app, flags, logging

from fasseg_jax.config import config_flags
from fasseg_jax.inference.predict import PredictionOptions, find_photos, load_segmenter, segment_film, segment_photos
from fasseg_jax.inference.video import CAMERA, VideoError, is_video
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import enable_compilation_cache
from fasseg_jax.runtime.devices import choose_device
from fasseg_jax.runtime.preemption import INTERRUPTED

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


class UsageError(Exception):
    """The command line asks for something impossible; the message says what to change."""


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)  # without JAX's notes on the platforms that it lacks
    try:
        check_usage(argv)
        options = options_of_flags()
        photos = {} if is_video(INPUT.value or "") else find_photos(options)
        device = choose_device(DEVICE.value)
        cache = enable_compilation_cache()
        segmenter = load_segmenter(options)
        if EXPLAIN.value and segmenter.config.inference.mode != "single":
            raise UsageError("--explain shows a prediction from a single view of the photo, not from several")
    except (UsageError, ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=2)
    print(f"Computing on {device.device_kind} ({device.platform}).")
    print(f"For the first picture of each size the network is compiled; programs are kept in {cache}.")
    try:
        if not photos:
            summary = segment_film(segmenter, options)
            if summary.lost:
                return print_error(
                    f"{INPUT.value}: {summary.lost} frames could not be decoded and are left out", status=1
                )
            return INTERRUPTED if summary.stopped and not options.from_camera else 0
        unreadable = segment_photos(segmenter, photos, options)
        if unreadable:
            names = ", ".join(map(str, unreadable))
            return print_error(f"{len(unreadable)} of {len(photos)} photos could not be read: {names}", status=1)
        return 0
    except VideoError as error:
        return print_error(error, status=1)
    except OSError as error:
        return print_error(f"cannot write the results: {error}", status=1)
    except FloatingPointError as error:
        return print_error(error, status=1)


def options_of_flags() -> PredictionOptions:
    """What the flags ask for."""
    return PredictionOptions(
        output=Path(OUTPUT.value),
        input=INPUT.value,
        checkpoint=CHECKPOINT.value,
        config=CONFIG.value,
        multi_scale=MULTI_SCALE.value,
        sliding_window=SLIDING_WINDOW.value,
        short_side=SHORT_SIDE.value,
        scores=SCORES.value,
        explain=EXPLAIN.value,
    )


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


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
