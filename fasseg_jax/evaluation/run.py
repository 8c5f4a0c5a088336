"""An evaluation from its options to its files: what eval.py does."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal

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
from fasseg_jax.evaluation.progress import EvaluationProgress, describe_evaluation, evaluation_facts
from fasseg_jax.evaluation.results import (
    default_output,
    describe_inference,
    picture_images,
    rank,
    write_images,
    write_numbers,
    write_pictures,
)
from fasseg_jax.evaluation.submission import result_name, write_labels
from fasseg_jax.evaluation.tables import print_table
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import inference_settings
from fasseg_jax.runtime.agreement import fail_together, require_equal
from fasseg_jax.runtime.command_line import print_error
from fasseg_jax.runtime.compilation import CompileTimer, enable_compilation_cache
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path, make_path
from fasseg_jax.runtime.preemption import Interruption
from fasseg_jax.weights.checkpoint import Checkpoint, find_checkpoint
from fasseg_jax.weights.pretrained import load_pretrained
from fasseg_jax.weights.remote import fetch

__all__ = [
    "Evaluation",
    "EvaluationOptions",
    "EvaluationOutcome",
    "prepare_evaluation",
    "run_evaluation",
    "write_results",
]

SPLIT = "validation"
NUM_BEST = 4  # images with the best scores that the report shows


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What to evaluate, how, and what to write.

    Attributes:
      checkpoint: folder of a checkpoint, or of a run, whose best checkpoint is taken.
      config: configuration of data and inference, by default the checkpoint's.
      output: folder for the results, by default evaluation/CHECKPOINT-MODE.
      mode: `config.inference.mode`, if it is to differ from the configuration's.
      batch_size: inputs of the network per device.
      save_predictions: which label maps to write: "none"; "class ids"; or "submission", in the ids of the data set's
        label files.
      num_worst: how many of the worst images to draw.
      skip_unreadable: skip samples that cannot be read, instead of raising an error.
      restart: discard the progress that the output folder holds.
    """

    checkpoint: str
    config: ConfigDict | None = None
    output: str | None = None
    mode: str | None = None
    batch_size: int = 1
    save_predictions: Literal["none", "class ids", "submission"] = "none"
    num_worst: int = 10
    skip_unreadable: bool = False
    restart: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluationOutcome:
    """How an evaluation ended.

    Attributes:
      interrupted: whether it stopped before its end; the same options resume it.
      skipped: an error message for each sample that was skipped.
    """

    interrupted: bool
    skipped: list[str]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that is ready to run.

    Attributes:
      options: what was asked for.
      checkpoint: folder of the weights.
      config: the whole configuration.
      source: the samples.
      segmenter: the model.
      output: folder for the results.
      progress: what earlier runs have done.
    """

    options: EvaluationOptions
    checkpoint: Path
    config: ConfigDict
    source: Source
    segmenter: Segmenter
    output: Path
    progress: EvaluationProgress


def prepare_evaluation(options: EvaluationOptions, devices: list[jax.Device]) -> Evaluation:
    """Load the model, open the data, and read the progress of earlier runs.

    All hosts must call this.

    Args:
      options: what to evaluate.
      devices: this host's devices.

    Raises:
      ValueError, OSError: the checkpoint, the data or the output folder cannot be used, on this host or another; or
        another host was started otherwise.
    """
    cache = enable_compilation_cache() or "memory"
    _print(f"Computing on {jax.device_count()} x {devices[0].device_kind}; compiled programs are kept in {cache}.")
    with fail_together():
        path, origin = find_checkpoint(fetch(options.checkpoint))
        _print(f"Checkpoint: {path}{origin}.")
        checkpoint = load_pretrained(path)
        checkpoint.require_whole_model(path)
        config = _evaluation_config(checkpoint, options)
        source = _open_data(config, checkpoint.classes, options.skip_unreadable)
        segmenter = Segmenter(config, checkpoint.variables, source.classes, devices=devices)
        output = make_path(options.output or default_output(path, config))
        identity = describe_evaluation(config, checkpoint.variables, source.classes, options.save_predictions)
    require_equal(evaluation_facts(identity, source))
    progress = EvaluationProgress.open(output / "progress", identity, source, options.restart)
    _print(f"{len(source)} images of {config.data.root or config.data.source}; results go to {output}.")
    if progress.done:
        _print(f"{len(progress.done)} of them are done (--restart does them again).")
    if progress.changed:
        _print(f"{progress.changed} of them were done but have changed since, and are done again.")
    return Evaluation(options, path, config, source, segmenter, output, progress)


def run_evaluation(evaluation: Evaluation) -> EvaluationOutcome:
    """Start or resume an evaluation, and write its results.

    All hosts must call this.

    Raises:
      DataError: a sample cannot be read and is not to be skipped, or all were skipped.
      FloatingPointError: the network's output is not finite.
      OSError: the results cannot be written.
    """
    source, progress = evaluation.source, evaluation.progress
    with fail_together():  # the others finish their share first, which is kept
        results, skipped, stopped = _evaluate_share_of_host(evaluation)
    gathered = all_gather_objects([stopped, skipped, [result.to_json() for result in results]])
    results = [*progress.done.values(), *(ImageResult.from_json(fields) for *_, host in gathered for fields in host)]
    skipped = list(dict.fromkeys(message for _, host, _ in gathered for message in host))
    if any(stopped for stopped, *_ in gathered):
        _print(f"Interrupted: {len(results)} of {len(source)} images are done. The same command resumes from there.")
        return EvaluationOutcome(interrupted=True, skipped=skipped)
    if not results:
        raise DataError(f"none of {len(source)} images could be read")
    with fail_together():  # the other hosts wait here
        if jax.process_index() == 0:
            write_results(evaluation, results, skipped)
    return EvaluationOutcome(interrupted=False, skipped=skipped)


def _evaluate_share_of_host(evaluation: Evaluation) -> tuple[list[ImageResult], list[str], bool]:
    """Evaluate this host's remaining images: results, messages of skipped samples, whether it was interrupted."""
    options, data = evaluation.options, evaluation.config.data
    source, progress = evaluation.source, evaluation.progress
    indices = share_of_host(index for index in range(len(source)) if index not in progress.done)
    display = EvaluationDisplay(progress.done.values(), len(indices), len(source.classes))
    results: list[ImageResult] = []
    skipped = list(source.problems)
    stopped = False

    def skip(error: DataError) -> None:
        skipped.append(str(error))
        display.print_error(f"skipped {error}")

    images = evaluate_images(
        evaluation.segmenter,
        source,
        indices,
        data.ignore_label,
        batch_size=options.batch_size,
        num_threads=data.num_threads,
        skip=skip if options.skip_unreadable else None,
        save=_prediction_writer(evaluation),
    )
    interruption = Interruption(together=False)  # each host may stop by itself: the others lose nothing
    compiling = CompileTimer()
    with display, progress.writer() as writer, contextlib.closing(images):
        for result in images:
            writer.add(result)
            results.append(result)
            display.update(result)
            if stopped := interruption.requested():
                break
    if results:
        num_shapes = len(evaluation.segmenter.input_shapes)
        _print(f"{num_shapes} shapes of the network's input, {compiling.seconds:.1f} s to compile or load programs.")
    return results, skipped, stopped


def write_results(evaluation: Evaluation, results: list[ImageResult], skipped: list[str]) -> None:
    """Print the metrics, and write all files."""
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
    best = picture_images(evaluation.segmenter, source, ranked[::-1][:NUM_BEST], names)
    worst = picture_images(evaluation.segmenter, source, ranked[: evaluation.options.num_worst], names)
    write_pictures(output, counts, metrics, classes, best, worst, facts)
    print(f"Results are in {output}. Open {output / 'report.html'} to look at them.")


def _evaluation_config(checkpoint: Checkpoint, options: EvaluationOptions) -> ConfigDict:
    """The checkpoint's configuration, with data, inference and dtype of `options.config`."""
    config = checkpoint.config.copy_and_resolve_references()
    given = options.config
    if given is not None:
        config.data, config.model.dtype = given.data, given.model.dtype
        ours, theirs = flat_fields(config.model), flat_fields(given.model)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                _print(f"config.model.{name} is the checkpoint's {ours.get(name)!r}, not {theirs.get(name)!r}.")
    config.inference = inference_settings(given or config, {"mode": options.mode} if options.mode else {})
    return config


def _open_data(config: ConfigDict, classes: ClassTable, skip_unreadable: bool) -> Source:
    """Open the validation split of the configuration; its classes must be `classes`, the checkpoint's."""
    found = data_classes(config.data)
    if found.names != classes.names:
        pairs = itertools.zip_longest(classes.names, found.names)
        class_id, (theirs, ours) = next(item for item in enumerate(pairs) if item[1][0] != item[1][1])
        raise DataError(
            f"the checkpoint's {len(classes)} classes are not the data's {len(found)}: class {class_id} is {theirs!r} "
            f"in the checkpoint and {ours!r} in the data; check config.data.dataset and config.data.root"
        )
    if not skip_unreadable:
        return open_source(config, SPLIT)
    source = find_source(config.data, SPLIT)
    for problem in source.problems if jax.process_index() == 0 else ():
        print_error(f"skipped {problem}", status=0)
    return source


def _prediction_writer(evaluation: Evaluation) -> Callable[[str, np.ndarray], None] | None:
    """A function that writes the label map of a sample to OUTPUT/predictions; None if none are to be written."""
    kind, root = evaluation.options.save_predictions, evaluation.config.data.root
    if kind == "none":
        return None
    ids = evaluation.source.file_ids if kind == "submission" else None

    def write(name: str, labels: np.ndarray) -> None:
        write_labels(evaluation.output / "predictions" / f"{result_name(name, root)}.png", labels, ids)

    return write


def _print(message: str) -> None:
    """Print a line on the first host."""
    if jax.process_index() == 0:
        print(message, flush=True)
