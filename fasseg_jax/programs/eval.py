"""Evaluate a trained model on the validation split of a data set.

    fasseg eval --config CONFIG --checkpoint CHECKPOINT --config.data.root=FOLDER

CONFIG is a recipe, for example ade20k:r50. CHECKPOINT is what convert.py wrote, a run's
checkpoints/STEP, or the folder of a run, whose best checkpoint is taken. The model and its classes are the
checkpoint's. Data, inference and dtype are those of --config, or the checkpoint's if there is no --config. All devices
of all hosts take part.

OUTPUT gets metrics.json, per_class.csv, images.csv (score and uncertainty of each image), confusion.png, report.html,
worst/ (photo, ground truth and prediction of the worst images) and, with --save_predictions, predictions/. It also
holds the progress: after an interruption the same command resumes, and ends with the same results.

Exit status: 0 done; 1 images were skipped, the network's output is not finite, or results cannot be written; 2 wrong
usage, checkpoint or data; 75 interrupted, or a host was lost, and the same command resumes.
"""

import jax
from absl import flags, logging

from fasseg_jax.config import base_config, config_flags
from fasseg_jax.data import DataError
from fasseg_jax.evaluation.run import EvaluationOptions, prepare_evaluation, run_evaluation
from fasseg_jax.runtime.command_line import end_within, print_error
from fasseg_jax.runtime.compilation import announce
from fasseg_jax.runtime.devices import choose_devices, join_hosts, lost_hosts_first
from fasseg_jax.runtime.files import WriteError, make_path
from fasseg_jax.runtime.supervision import INTERRUPTED

__all__ = ["define_flags", "main"]

PATIENCE = 30  # seconds after an error, in which the hosts take leave of each other


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    status = evaluate(argv)
    if status not in (0, INTERRUPTED) and jax.distributed.is_initialized():
        end_within(PATIENCE, status)
    return status


def evaluate(argv: list[str]) -> int:
    """Evaluate, print what is wrong, and return the exit status."""
    logging.set_verbosity(logging.WARNING)  # hides JAX's notes on platforms that this machine lacks
    flag = flags.FLAGS
    try:
        options = read_options(argv)
        lost_host_seconds = (options.config or base_config()).train.lost_host_seconds
        join_hosts(lost_host_seconds)
        devices = choose_devices(flag.device)
        with lost_hosts_first(lost_host_seconds):
            evaluation = prepare_evaluation(options, devices)
        evaluation.segmenter.announce = announce
    except (ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=1 if isinstance(error, WriteError) else 2)
    try:
        with lost_hosts_first(lost_host_seconds):
            outcome = run_evaluation(evaluation)
    except DataError as error:
        return print_error(f"{error}. --skip_unreadable skips such images", status=2)
    except WriteError as error:
        return print_error(error, status=1)
    except OSError as error:
        return print_error(f"cannot write the results: {error}", status=1)
    except FloatingPointError as error:
        return print_error(error, status=1)
    except ValueError as error:
        return print_error(error, status=2)
    if outcome.interrupted:
        return INTERRUPTED
    return print_error(f"{len(outcome.skipped)} images were skipped", status=1) if outcome.skipped else 0


def read_options(argv: list[str]) -> EvaluationOptions:
    """What the flags ask for; raises a `ValueError` if they contradict each other."""
    flag, config = flags.FLAGS, config_flags.given_config()
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    if flag.checkpoint is None:
        raise ValueError("--checkpoint is needed: the folder of a checkpoint, or of a run of train.py")
    if flag.multi_scale and flag.sliding_window:
        raise ValueError("--multi_scale and --sliding_window are two ways to predict an image; give one")
    if flag.submission and not flag.save_predictions:
        raise ValueError("--submission changes how predictions are written: add --save_predictions")
    if flag.output and make_path(flag.output).exists() and not make_path(flag.output).is_dir():
        raise ValueError(f"--output {flag.output} is a file; give a folder")
    return EvaluationOptions(
        checkpoint=flag.checkpoint,
        config=config,
        output=flag.output,
        mode="multi_scale" if flag.multi_scale else "sliding" if flag.sliding_window else None,
        batch_size=flag.batch_size,
        save_predictions="submission" if flag.submission else "class ids" if flag.save_predictions else "none",
        num_worst=flag.worst,
        skip_unreadable=flag.skip_unreadable,
        restart=flag.restart,
    )


def define_flags() -> None:
    """Define the command line of `fasseg eval`."""
    config_flags.DEFINE_config_file("config", None, "Data and inference; --config.NAME=VALUE overrides a field.")
    flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint or of a run, or hf://OWNER/NAME.")
    flags.DEFINE_string("output", None, "Folder for the results, by default evaluation/CHECKPOINT-MODE.")
    flags.DEFINE_bool("multi_scale", False, "Average over several sizes of an image, each also flipped.")
    flags.DEFINE_bool("sliding_window", False, "Average over overlapping windows of an image.")
    flags.DEFINE_integer("batch_size", 1, "Images per device in a batch.", lower_bound=1)
    flags.DEFINE_bool("save_predictions", False, "Write the predicted label maps, PNGs of class ids.")
    flags.DEFINE_bool(
        "submission", False, "Write them with the ids of the data set's label files, as its evaluation server expects."
    )
    flags.DEFINE_integer("worst", 10, "How many of the worst images to draw.", lower_bound=0)
    flags.DEFINE_bool("skip_unreadable", False, "Skip and list the images that cannot be read.")
    flags.DEFINE_bool("restart", False, "Discard the progress that OUTPUT holds.")
    flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Where to compute; by default JAX chooses.")
