"""Evaluate a trained model on the validation split of a data set.

    python eval.py --config configs/ade20k.py:r50 --checkpoint CHECKPOINT --config.data.root=FOLDER [--multi_scale]

CHECKPOINT is what convert.py wrote, a run's checkpoints/STEP, or the folder of a run, whose best checkpoint is taken.
The model and its classes are the checkpoint's; data, inference and dtype are those of --config, or the checkpoint's too
where that is left out. All devices of all hosts take part.

OUTPUT gets metrics.json, per_class.csv, images.csv (a score for each image), confusion.png, report.html, worst/ (photo,
truth and prediction of the worst images) and, with --save_predictions, predictions/. It also holds the progress: after
an interruption the same command goes on, with the same results; what is done is not done again.

Exit status: 0 done; 1 images were skipped, the weights give no finite numbers, or results cannot be written; 2 wrong
usage, checkpoint or data; 75 interrupted: the same command goes on.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from fasseg_jax.config import flat_fields
from fasseg_jax.data import DataError, Source, data_classes, find_source, open_source
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.display import EvaluationDisplay
from fasseg_jax.evaluation.evaluate import ImageResult, evaluate_images, share_of_host, sum_counts
from fasseg_jax.evaluation.metrics import metrics_of
from fasseg_jax.evaluation.progress import EvaluationProgress, describe_evaluation
from fasseg_jax.evaluation.results import picture_images, rank, write_images, write_numbers, write_pictures
from fasseg_jax.evaluation.submission import result_name, submission_ids, write_labels
from fasseg_jax.evaluation.tables import print_table
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import inference_settings
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import CompileTimer, enable_compilation_cache
from fasseg_jax.runtime.devices import choose_devices, join_hosts
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.preemption import INTERRUPTED, Interruption
from fasseg_jax.weights.checkpoint import Checkpoint, find_checkpoint, load_checkpoint

CONFIG = config_flags.DEFINE_config_file("config", None, "Data and inference; --config.NAME=VALUE overrides.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a checkpoint, or of a run of train.py.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results; by default evaluation/CHECKPOINT-MODE.")
MULTI_SCALE = flags.DEFINE_bool("multi_scale", False, "Average over several sizes of the image and mirror images.")
SLIDING_WINDOW = flags.DEFINE_bool("sliding_window", False, "Pass overlapping windows over the image.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Photos for each device at once.", lower_bound=1)
SAVE_PREDICTIONS = flags.DEFINE_bool("save_predictions", False, "Write the predicted label maps, PNGs of class ids.")
SUBMISSION = flags.DEFINE_bool(
    "submission", False, "Write them in the numbering of the data set's files, as its evaluation server wants them."
)
WORST = flags.DEFINE_integer("worst", 10, "How many of the worst images to picture.", lower_bound=0)
SKIP_UNREADABLE = flags.DEFINE_bool("skip_unreadable", False, "List and leave out what cannot be read.")
RESTART = flags.DEFINE_bool("restart", False, "Discard what OUTPUT holds of an earlier evaluation.")
DEVICE = flags.DEFINE_enum("device", None, ["cpu", "gpu", "tpu"], "Where to compute; by default what JAX chooses.")

SPLIT = "validation"
BEST = 4  # images that the report shows beside the worst


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated, and where its results go.

    Attributes:
      checkpoint: the folder that the weights come from.
      config: the whole configuration.
      source: the images with their truth.
      segmenter: the model.
      output: the folder for the results.
      progress: what earlier runs did.
    """

    checkpoint: Path
    config: ConfigDict
    source: Source
    segmenter: Segmenter
    output: Path
    progress: EvaluationProgress


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    try:
        check_usage(argv)
        join_hosts()
        evaluation = prepare(choose_devices(DEVICE.value))
    except (ValueError, OSError, RuntimeError) as error:
        return print_error(error, status=2)
    try:
        return evaluate(evaluation)
    except DataError as error:
        return print_error(f"{error}. --skip_unreadable leaves such images out", status=2)
    except OSError as error:
        return print_error(f"cannot write the results: {error}", status=1)
    except FloatingPointError as error:
        return print_error(error, status=1)
    except ValueError as error:
        return print_error(error, status=2)


def check_usage(argv: list[str]) -> None:
    """Raise a `ValueError` for flags that do not go together."""
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    if not CHECKPOINT.value:
        raise ValueError("--checkpoint is needed: the folder of a checkpoint, or of a run of train.py")
    if MULTI_SCALE.value and SLIDING_WINDOW.value:
        raise ValueError("--multi_scale and --sliding_window are two ways to predict an image; give one")
    if SUBMISSION.value and not SAVE_PREDICTIONS.value:
        raise ValueError("--submission is a way to write predictions: add --save_predictions")
    if OUTPUT.value and Path(OUTPUT.value).exists() and not Path(OUTPUT.value).is_dir():
        raise ValueError(f"--output {OUTPUT.value} is a file; give a folder")


def prepare(devices: list[jax.Device]) -> Evaluation:
    """Load the model, open the data, see what is done already."""
    cache = enable_compilation_cache()
    say(f"Computing on {jax.device_count()} x {devices[0].device_kind}; compiled programs are kept in {cache}.")
    path, origin = find_checkpoint(CHECKPOINT.value)
    say(f"Checkpoint: {path}{origin}.")
    checkpoint = load_checkpoint(path)
    if checkpoint.contents != "model":
        raise ValueError(f"{path}: holds a backbone alone, to start a training from; an evaluation needs a whole model")
    config = evaluation_config(checkpoint)
    source = open_data(config, checkpoint.classes)
    segmenter = Segmenter(config, checkpoint.variables, source.classes, devices=devices)
    output = Path(OUTPUT.value or default_output(path, config))
    saved = "submission" if SUBMISSION.value else "class ids" if SAVE_PREDICTIONS.value else "none"
    identity = describe_evaluation(config, checkpoint.variables, source.classes, saved)
    progress = EvaluationProgress.open(output / "progress", identity, source, RESTART.value)
    say(f"{len(source)} images of {config.data.root or config.data.source}; results go to {output}.")
    if progress.done:
        say(f"{len(progress.done)} of them are done (--restart would do them again).")
    if progress.changed:
        say(f"{progress.changed} were done but have changed since, and are done again.")
    return Evaluation(path, config, source, segmenter, output, progress)


def evaluate(evaluation: Evaluation) -> int:
    """Run or resume an evaluation; returns the exit status."""
    config, source, progress = evaluation.config, evaluation.source, evaluation.progress
    indices = share_of_host(index for index in range(len(source)) if index not in progress.done)
    display = EvaluationDisplay(progress.done.values(), len(indices), len(source.classes))
    results, skipped, stopped = [], list(source.problems), False

    def skip(error: DataError) -> None:
        skipped.append(str(error))
        display.print_error(f"skipped {error}")

    # Images
    images = evaluate_images(
        evaluation.segmenter,
        source,
        indices,
        config.data.ignore_label,
        batch_size=BATCH_SIZE.value,
        num_threads=config.data.num_threads,
        skip=skip if SKIP_UNREADABLE.value else None,
        save=prediction_writer(evaluation) if SAVE_PREDICTIONS.value else None,
    )
    interruption = Interruption(together=False)  # nothing is lost if a host stops alone
    compiling = CompileTimer()
    with display, progress.writer() as writer, contextlib.closing(images):
        for result in images:
            writer.add(result)
            results.append(result)
            display.update(result)
            if stopped := interruption.requested():
                break

    if results:
        shapes, seconds = len(evaluation.segmenter.input_shapes), compiling.seconds
        say(f"{shapes} shapes of the network's input, {seconds:.1f} s to compile or load the programs for them.")

    # All hosts together
    told = all_gather_objects([stopped, skipped, [result.to_json() for result in results]])
    results = [*progress.done.values(), *(ImageResult.from_json(fields) for *_, host in told for fields in host)]
    skipped = list(dict.fromkeys(message for _, host, _ in told for message in host))
    if any(stopped for stopped, *_ in told):
        say(f"Interrupted: {len(results)} of {len(source)} images are done. The same command goes on from there.")
        return INTERRUPTED
    if not results:
        raise DataError(f"none of {len(source)} images could be read")
    if jax.process_index() == 0:
        write_results(evaluation, results, skipped)
    all_gather_objects("written")  # until then the other hosts wait
    return print_error(f"{len(skipped)} images were skipped", status=1) if skipped else 0


def write_results(evaluation: Evaluation, results: list[ImageResult], skipped: list[str]) -> None:
    """Print the metrics and write all files."""
    config, source, output = evaluation.config, evaluation.source, evaluation.output
    classes = source.classes
    counts = sum_counts(results, len(classes))
    metrics = metrics_of(counts)
    print_table(metrics, classes, Console())
    names = {result.index: result_name(result.name, config.data.root) for result in results}
    facts = {
        "checkpoint": str(evaluation.checkpoint),
        "data": f"{config.data.root or config.data.source}, {SPLIT}",
        "images": str(len(results)),
        "skipped": str(len(skipped)),
        "inference": describe_inference(config.inference),
    }
    write_numbers(output, counts, metrics, classes, {**facts, "skipped": skipped})
    write_images(output / "images.csv", results, names, len(classes))
    ranked = rank(results, len(classes))
    pictures = [
        picture_images(evaluation.segmenter, source, some, names)
        for some in (ranked[::-1][:BEST], ranked[: WORST.value])
    ]
    write_pictures(output, counts, metrics, classes, *pictures, facts)
    print(f"Results are in {output}; to look at them open {output / 'report.html'}.")


def evaluation_config(checkpoint: Checkpoint) -> ConfigDict:
    """The checkpoint's configuration, with the data, inference and dtype of --config."""
    config = checkpoint.config.copy_and_resolve_references()
    if CONFIG.value is not None:
        given = CONFIG.value
        config.data, config.model.dtype = given.data, given.model.dtype
        ours, theirs = flat_fields(config.model), flat_fields(given.model)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                say(f"config.model.{name} is the checkpoint's {ours.get(name)!r}, not {theirs.get(name)!r}.")
    mode = "multi_scale" if MULTI_SCALE.value else "sliding" if SLIDING_WINDOW.value else None
    config.inference = inference_settings(CONFIG.value or config, {"mode": mode} if mode else {})
    return config


def open_data(config: ConfigDict, classes: ClassTable) -> Source:
    """Open the validation split of the configuration, whose classes must be `classes`."""
    ours = data_classes(config.data)
    if ours.names != classes.names:
        pairs = itertools.zip_longest(classes.names, ours.names)
        number, (theirs, our) = next(item for item in enumerate(pairs) if item[1][0] != item[1][1])
        raise DataError(
            f"the checkpoint's {len(classes)} classes are not the data's {len(ours)}: class {number} is {theirs!r} in "
            f"the checkpoint and {our!r} in the data; check config.data.dataset and config.data.root"
        )
    if not SKIP_UNREADABLE.value:
        return open_source(config, SPLIT)
    source = find_source(config.data, SPLIT)
    for problem in source.problems if jax.process_index() == 0 else ():
        print_error(f"skipped {problem}", status=0)
    return source


def default_output(checkpoint: Path, config: ConfigDict) -> Path:
    """evaluation/CHECKPOINT-MODE, or evaluation/RUN-STEP-MODE, below the working directory."""
    checkpoint = checkpoint.resolve()
    names = [checkpoint.name]
    if checkpoint.parent.name == "checkpoints" and checkpoint.name.isdigit():
        names.insert(0, checkpoint.parent.parent.name)
    return Path("evaluation", "-".join([*names, config.inference.mode]))


def prediction_writer(evaluation: Evaluation) -> Callable[[str, np.ndarray], None]:
    """Writes the label map of a sample to OUTPUT/predictions."""
    data, folder = evaluation.config.data, evaluation.output / "predictions"
    ids = submission_ids(data, len(evaluation.source.classes)) if SUBMISSION.value else None
    return lambda name, labels: write_labels(folder / f"{result_name(name, data.root)}.png", labels, ids)


def describe_inference(inference: ConfigDict) -> str:
    """How photos were predicted, in words."""
    if inference.mode == "multi_scale":
        sides, flip = inference.multi_scale.short_sides, inference.multi_scale.flip
        return f"multi-scale, shorter sides {', '.join(map(str, sides))}{', each also mirrored' if flip else ''}"
    if inference.mode == "sliding":
        (height, width), short_side = inference.sliding.window, inference.sliding.short_side
        return f"windows of {width}x{height}, shorter side {short_side or 'as it is'}"
    return f"single-scale, shorter side {inference.short_side}, longer at most {inference.max_long_side}"


def say(message: str) -> None:
    """Print a line, on the first host."""
    if jax.process_index() == 0:
        print(message, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
