"""What eval.py does: evaluate a model on the validation split of a data set and write the results."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from fasseg_jax.config import flat_fields
from fasseg_jax.data import DataError, Source, data_classes, find_source, open_source
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.display import EvaluationDisplay
from fasseg_jax.evaluation.evaluate import ImageResult, evaluate_images, share_of_host, sum_counts
from fasseg_jax.evaluation.metrics import metrics_of
from fasseg_jax.evaluation.progress import EvaluationProgress, describe_evaluation
from fasseg_jax.evaluation.results import picture_images, rank, write_images, write_numbers, write_pictures
from fasseg_jax.evaluation.submission import result_name, write_labels
from fasseg_jax.evaluation.tables import print_table
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import inference_settings
from fasseg_jax.runtime.command_line import print_error
from fasseg_jax.runtime.compilation import CompileTimer, enable_compilation_cache
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.preemption import Interruption
from fasseg_jax.weights.checkpoint import Checkpoint, find_checkpoint, load_checkpoint

__all__ = ["Evaluation", "EvaluationOptions", "EvaluationOutcome", "prepare", "run_evaluation"]

SPLIT = "validation"
BEST = 4  # images that the report shows beside the worst


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, how, and what to write.

    Attributes:
      checkpoint: the folder of a checkpoint, or of a run.
      config: data and inference; without it the checkpoint's.
      output: the folder for the results; by default evaluation/CHECKPOINT-MODE.
      multi_scale: average over several sizes and their mirror images.
      sliding_window: pass windows over the image.
      batch_size: photos for each device at once.
      save_predictions: write the predicted label maps.
      submission: write them in the numbering of the data set's files.
      worst: how many of the worst images to picture.
      skip_unreadable: leave out what cannot be read.
      restart: discard what the output folder holds of an earlier evaluation.
    """

    checkpoint: str
    config: ConfigDict | None = None
    output: str | None = None
    multi_scale: bool = False
    sliding_window: bool = False
    batch_size: int = 1
    save_predictions: bool = False
    submission: bool = False
    worst: int = 10
    skip_unreadable: bool = False
    restart: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluationOutcome:
    """How an evaluation ended.

    Attributes:
      interrupted: before its end; the same evaluation goes on from there.
      skipped: what is wrong with the images that were left out.
    """

    interrupted: bool
    skipped: list[str]


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
      options: what was asked for.
    """

    checkpoint: Path
    config: ConfigDict
    source: Source
    segmenter: Segmenter
    output: Path
    progress: EvaluationProgress
    options: EvaluationOptions


def prepare(options: EvaluationOptions, devices: list[jax.Device]) -> Evaluation:
    """Load the model, open the data, see what is done already."""
    cache = enable_compilation_cache()
    say(f"Computing on {jax.device_count()} x {devices[0].device_kind}; compiled programs are kept in {cache}.")
    path, origin = find_checkpoint(options.checkpoint)
    say(f"Checkpoint: {path}{origin}.")
    checkpoint = load_checkpoint(path)
    checkpoint.require_whole_model(path)
    config = evaluation_config(checkpoint, options)
    source = open_data(config, checkpoint.classes, options.skip_unreadable)
    segmenter = Segmenter(config, checkpoint.variables, source.classes, devices=devices)
    output = Path(options.output or default_output(path, config))
    saved = "submission" if options.submission else "class ids" if options.save_predictions else "none"
    identity = describe_evaluation(config, checkpoint.variables, source.classes, saved)
    progress = EvaluationProgress.open(output / "progress", identity, source, options.restart)
    say(f"{len(source)} images of {config.data.root or config.data.source}; results go to {output}.")
    if progress.done:
        say(f"{len(progress.done)} of them are done (--restart would do them again).")
    if progress.changed:
        say(f"{progress.changed} were done but have changed since, and are done again.")
    return Evaluation(path, config, source, segmenter, output, progress, options)


def run_evaluation(evaluation: Evaluation) -> EvaluationOutcome:
    """Run or resume an evaluation."""
    config, source, progress = evaluation.config, evaluation.source, evaluation.progress
    options = evaluation.options
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
        batch_size=options.batch_size,
        num_threads=config.data.num_threads,
        skip=skip if options.skip_unreadable else None,
        save=prediction_writer(evaluation) if options.save_predictions else None,
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
        return EvaluationOutcome(interrupted=True, skipped=skipped)
    if not results:
        raise DataError(f"none of {len(source)} images could be read")
    if jax.process_index() == 0:
        write_results(evaluation, results, skipped)
    all_gather_objects("written")  # until then the other hosts wait
    return EvaluationOutcome(interrupted=False, skipped=skipped)


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
        for some in (ranked[::-1][:BEST], ranked[: evaluation.options.worst])
    ]
    write_pictures(output, counts, metrics, classes, *pictures, facts)
    print(f"Results are in {output}; to look at them open {output / 'report.html'}.")


def evaluation_config(checkpoint: Checkpoint, options: EvaluationOptions) -> ConfigDict:
    """The checkpoint's configuration, with the data, inference and dtype of --config."""
    config = checkpoint.config.copy_and_resolve_references()
    if options.config is not None:
        given = options.config
        config.data, config.model.dtype = given.data, given.model.dtype
        ours, theirs = flat_fields(config.model), flat_fields(given.model)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                say(f"config.model.{name} is the checkpoint's {ours.get(name)!r}, not {theirs.get(name)!r}.")
    mode = "multi_scale" if options.multi_scale else "sliding" if options.sliding_window else None
    config.inference = inference_settings(options.config or config, {"mode": mode} if mode else {})
    return config


def open_data(config: ConfigDict, classes: ClassTable, skip_unreadable: bool) -> Source:
    """Open the validation split of the configuration, whose classes must be `classes`."""
    ours = data_classes(config.data)
    if ours.names != classes.names:
        pairs = itertools.zip_longest(classes.names, ours.names)
        number, (theirs, our) = next(item for item in enumerate(pairs) if item[1][0] != item[1][1])
        raise DataError(
            f"the checkpoint's {len(classes)} classes are not the data's {len(ours)}: class {number} is {theirs!r} in "
            f"the checkpoint and {our!r} in the data; check config.data.dataset and config.data.root"
        )
    if not skip_unreadable:
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
    ids = evaluation.source.file_ids if evaluation.options.submission else None
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
