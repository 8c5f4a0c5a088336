"""Segment a photo, all photos of a folder, a video or a camera's images with a trained model.

    fasseg predict --checkpoint CHECKPOINT --input INPUT --output FOLDER

INPUT is a photo, a folder, a video (video.mp4) or a camera (camera:0, until Ctrl-C). For each photo the program writes
NAME_labels.png, the class id of every pixel (one channel, 8 bits, or 16 for more than 255 classes), and
NAME_overlay.png, the classes in color over the photo with a legend. Results of subfolders go to the same subfolders of
FOLDER. A video becomes NAME_overlay.mp4, without sound. To try an installation without weights:

    fasseg predict --untrained --config ade20k:r50 --output FOLDER

Photos are predicted as the checkpoint's configuration says, normally once, at its test size. --multi_scale averages
over several sizes, each also flipped: a little better, ten to twenty times slower. --sliding_window suits photos much
larger than the training crops: windows of the size of a training crop pass over the photo in its own size, or with
--short_side in another.

--explain also writes NAME_explanation.png for each photo: for the queries that matter most their mask, class and focus
through the decoder's layers, and the windows that HRCA selects.

--write_labels labelme (or coco) also writes the predictions as polygons to FOLDER/labelme (or coco), which annotation
tools open, and to_correct.csv, which lists the photos, the least certain first.

Several hosts, as of a TPU pod, divide the photos of a folder among them, and so do the devices of a host.

Exit status: 0 all done; 1 a photo or some frames could not be read (the others are done) or results not be written; 2
wrong usage; 75 interrupted, or a host was lost: the same command does the photos that are left (a video can be played
as far as it goes).
"""

import io
import sys

import jax
from absl import flags, logging

from fasseg_jax.config import base_config, config_flags
from fasseg_jax.inference.label_files import LABEL_FORMATS
from fasseg_jax.inference.predict import (
    PredictionOptions,
    find_photos,
    load_segmenter,
    segment_camera_or_video,
    segment_photos,
)
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.video import CAMERA, VideoError, is_video
from fasseg_jax.runtime.agreement import fail_together
from fasseg_jax.runtime.command_line import end_within, print_error
from fasseg_jax.runtime.compilation import announce, enable_compilation_cache
from fasseg_jax.runtime.devices import choose_devices, join_hosts, lost_hosts_first
from fasseg_jax.runtime.files import WriteError, make_path, require_regular_file
from fasseg_jax.runtime.supervision import INTERRUPTED

__all__ = ["define_flags", "main"]

PATIENCE = 30  # seconds after an error, in which the hosts take leave of each other


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    status = predict(argv)
    if status not in (0, INTERRUPTED) and jax.distributed.is_initialized():
        end_within(PATIENCE, status)
    return status


def predict(argv: list[str]) -> int:
    """Predict, print what is wrong, and return the exit status."""
    logging.set_verbosity(logging.WARNING)  # hides JAX's notes on platforms that this machine lacks
    flag = flags.FLAGS
    video = flag.input if flag.input and is_video(flag.input) else None
    lost_host_seconds = base_config().train.lost_host_seconds
    try:
        options = read_options(argv)
        join_hosts(lost_host_seconds)
        devices = choose_devices(flag.device)
        if jax.process_count() > 1 and (video or options.write_labels):
            raise ValueError(f"{'a video' if video else '--write_labels'} is for one host; start the program on one")
        if jax.process_index() > 0:
            sys.stdout = io.StringIO()  # the first host speaks for all
        with lost_hosts_first(lost_host_seconds), fail_together():
            photos = {} if video else find_photos(options)
            devices = devices if len(photos) > 1 else devices[:1]
            cache = enable_compilation_cache() or "memory"
            segmenter = load_segmenter(options, devices)
            segmenter.announce = announce
            if options.explain and segmenter.config.inference.mode != "single":
                raise ValueError("--explain shows a prediction from a single view of the photo, not from several")
    except (ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=1 if isinstance(error, WriteError) else 2)
    several = f"{len(devices)} x " if len(devices) > 1 else ""
    print(f"Computing on {several}{devices[0].device_kind} ({devices[0].platform}).")
    print(f"JAX compiles the network for each new size of a picture, and keeps the programs in {cache}.")
    try:
        if video:
            return predict_video(segmenter, video, options)
        with lost_hosts_first(lost_host_seconds):
            outcome = segment_photos(segmenter, photos, options)
    except WriteError as error:
        return print_error(error, status=1)
    except OSError as error:
        return print_error(f"cannot write the results: {error}", status=1)
    except (VideoError, FloatingPointError) as error:
        return print_error(error, status=1)
    except ValueError as error:
        return print_error(error, status=2)
    if outcome.interrupted:
        return INTERRUPTED
    if unreadable := outcome.unreadable:
        more = f" and {len(unreadable) - 5} others, named above" if len(unreadable) > 5 else ""
        names = ", ".join(unreadable[:5]) + more
        return print_error(f"{len(unreadable)} of {len(photos)} photos were skipped: {names}", status=1)
    return 0


def predict_video(segmenter: Segmenter, video: str, options: PredictionOptions) -> int:
    """Segment a video or a camera's images and return the exit status."""
    summary = segment_camera_or_video(segmenter, video, options)
    if summary.lost:
        return print_error(f"{video}: {summary.lost} frames could not be decoded and are left out", status=1)
    return INTERRUPTED if summary.stopped and not video.startswith(CAMERA) else 0


def read_options(argv: list[str]) -> PredictionOptions:
    """What the flags ask for; raises a `ValueError` if they contradict each other."""
    flag, config = flags.FLAGS, config_flags.given_config()
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}; photos are given by --input")
    if not flag.output:
        raise ValueError("--output is needed: the folder for the results")
    if flag.untrained == bool(flag.checkpoint):
        raise ValueError("give --checkpoint, or --untrained to try an installation with random weights")
    if flag.untrained != (config is not None):
        raise ValueError("--untrained needs --config, and a checkpoint holds its own configuration")
    if not flag.input and not flag.untrained:
        raise ValueError("--input is needed: a photo, a folder of photos, a video or a camera")
    if flag.multi_scale and flag.sliding_window:
        raise ValueError("--multi_scale and --sliding_window are two ways to predict a photo; give one")
    if flag.short_side == 0 and not flag.sliding_window:
        raise ValueError("--short_side 0, the photo's own size, goes with --sliding_window")
    if flag.input and is_video(flag.input):
        if flag.scores or flag.explain or flag.write_labels:
            raise ValueError("--scores, --explain and --write_labels are for photos, not for videos")
        if not flag.input.startswith(CAMERA):
            require_regular_file(make_path(flag.input))
            if not make_path(flag.input).is_file():
                raise ValueError(f"--input {flag.input}: there is no such file")
    if flag.write_labels and (labels := make_path(flag.output) / flag.write_labels).exists():
        raise ValueError(f"{labels} is there, perhaps with corrected labels; give another --output, or remove it")
    if make_path(flag.output).exists() and not make_path(flag.output).is_dir():
        raise ValueError(f"--output {flag.output} is a file; give a folder")
    return PredictionOptions(
        output=make_path(flag.output),
        input=flag.input,
        checkpoint=flag.checkpoint,
        untrained=config,
        mode="multi_scale" if flag.multi_scale else "sliding" if flag.sliding_window else None,
        short_side=flag.short_side,
        round_to=flag.round_to,
        dtype=flag.dtype,
        scores=flag.scores,
        explain=flag.explain,
        write_labels=flag.write_labels,
    )


def define_flags() -> None:
    """Define the command line of `fasseg predict`."""
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint or of a run, or hf://OWNER/NAME.")
    flags.DEFINE_string(
        "input", None, "A photo, a folder of photos (subfolders included), a video, or a camera: camera:0."
    )
    flags.DEFINE_string("output", None, "Folder for the results; made if absent.")
    flags.DEFINE_bool(
        "scores", False, "Also write NAME_scores.npy: (H, W, K) float16, 300 bytes per pixel for 150 classes."
    )
    flags.DEFINE_bool("explain", False, "Also write NAME_explanation.png: what the decoder looks at.")
    flags.DEFINE_enum("write_labels", None, LABEL_FORMATS, "Also write the predictions as polygons, to correct them.")
    flags.DEFINE_bool("multi_scale", False, "Average over several sizes of a photo, each also flipped.")
    flags.DEFINE_bool("sliding_window", False, "Average over overlapping windows of a photo.")
    flags.DEFINE_integer(
        "short_side",
        None,
        "Resize a photo's shorter side to this many pixels first, in place of the configuration's value; with "
        "--sliding_window 0 keeps the photo's size.",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "round_to",
        None,
        "Pad photos to multiples of this many pixels, itself one of 32, in place of the configuration's value: more "
        "photos share a compiled program, and scores change.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "Dtype of the network, if not the checkpoint's; bfloat16 is faster on GPUs, TPUs and recent CPUs, and rounds.",
    )
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Where to compute; by default JAX chooses.")
    flags.DEFINE_bool(
        "untrained",
        False,
        "Use random weights instead of a checkpoint, to try an installation; without --input on a generated picture.",
    )
    config_flags.DEFINE_config_file("config", None, "The model for --untrained, e.g. configs/ade20k.py:r50.")
