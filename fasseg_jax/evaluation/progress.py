"""Progress of an evaluation on disk. A killed evaluation resumes, and ends with exactly the same results.

FOLDER/evaluation.json says what is evaluated: model, weights, data, settings. FOLDER/host_N.jsonl gets a line as soon
as host N has done an image. Lines hold integer counts, so neither their order nor interruptions change the sums. The
next run drops a line that a killed run left incomplete, and evaluates samples again whose files have changed.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from fasseg_jax.config import flat_fields
from fasseg_jax.data import DataError, Source
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.evaluate import ImageResult
from fasseg_jax.runtime.agreement import fail_together, version_facts
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path, remove_folder, write_atomically
from fasseg_jax.runtime.record_file import RecordFile, list_record_files, read_records
from fasseg_jax.weights.digest import variables_digest

__all__ = ["EvaluationProgress", "OtherEvaluationError", "describe_evaluation", "evaluation_facts"]

FORMAT = 1  # of the lines; lines of different formats are not mixed
# Fields of `config.data` that do not change results. A sample's version identifies its file, wherever that lies.
WITHOUT_EFFECT = ("data.num_threads", "data.prefetch", "data.root", "data.max_targets")


class OtherEvaluationError(ValueError):
    """The folder holds the progress of a different evaluation; the message says what differs and what to do."""


def describe_evaluation(
    config: ConfigDict, variables: dict[str, Any], classes: ClassTable, predictions: str
) -> dict[str, Any]:
    """Everything except the samples that the results depend on, as JSON can hold it.

    Args:
      config: the whole configuration.
      variables: the model's variables, which enter as a digest of their numbers.
      classes: the data's classes.
      predictions: which label maps the evaluation also writes.
    """
    fields = flat_fields(ConfigDict({part: config[part] for part in ("data", "inference", "model")}))
    return {
        "format": FORMAT,
        **{f"config.{name}": value for name, value in fields.items() if name not in WITHOUT_EFFECT},
        "class names": list(classes.names),
        "weights": variables_digest(variables),
        "predictions": predictions,
    }


def evaluation_facts(evaluation: Mapping[str, Any], source: Source) -> dict[str, str]:
    """What must be the same on all hosts: name -> value, in words; `evaluation` is of `describe_evaluation`."""
    return {
        **version_facts(),
        **{name: str(value) for name, value in evaluation.items()},
        "the number of images": str(len(source)),
    }


@dataclasses.dataclass(frozen=True)
class EvaluationProgress:
    """The progress of one evaluation.

    Attributes:
      folder: the folder of its files.
      done: results of earlier runs on all hosts, by the index of their sample.
      changed: how many samples were done but have changed since then; they are not in `done`.
    """

    folder: Path
    done: dict[int, ImageResult]
    changed: int

    @classmethod
    def open(
        cls, folder: Path, evaluation: dict[str, Any], source: Source, restart: bool = False
    ) -> "EvaluationProgress":
        """Read what earlier runs have done. All hosts must call this; they need not see the same files.

        Args:
          folder: a folder that holds nothing else; made if absent.
          evaluation: from `describe_evaluation`.
          source: the samples.
          restart: discard what was done.

        Raises:
          OtherEvaluationError: the folder holds the progress of a different evaluation.
        """
        header = folder / "evaluation.json"
        with fail_together():
            if restart and header.exists():
                remove_folder(folder)  # another host may do so at the same time
            found = _differences(_read_header(header), evaluation)
            results = [] if found else _read_results(folder)
        current = [result.to_json() for result in results if _is_current(result, source)]
        gathered = all_gather_objects([found, current, [result.index for result in results]])  # before any host writes
        differences: list[str] = next((differences for differences, *_ in gathered if differences), [])
        if differences:
            raise OtherEvaluationError(
                f"{folder.parent} holds another evaluation ({'; '.join(differences)}): give another --output, or "
                "--restart to discard it"
            )
        with fail_together(), write_atomically(header) as partial:
            partial.write_text(json.dumps(evaluation, indent=1))
        done = {fields["index"]: ImageResult.from_json(fields) for _, current, _ in gathered for fields in current}
        return cls(folder, done, changed=len({index for *_, indices in gathered for index in indices} - done.keys()))

    def writer(self) -> "ProgressWriter":
        """The writer of this host's results."""
        return ProgressWriter(self.folder / f"host_{jax.process_index()}.jsonl")


class ProgressWriter:
    """Appends results to a file, each immediately; a context manager."""

    def __init__(self, file: Path):
        """Open the file, and cut off the incomplete line that a killed run may have left."""
        self._file = RecordFile(file, _complete_length(file) if file.exists() else None)

    def add(self, result: ImageResult) -> None:
        """Append a result."""
        self._file.add(json.dumps(result.to_json()).encode() + b"\n")

    def __enter__(self) -> "ProgressWriter":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def _read_header(header: Path) -> dict[str, Any] | None:
    if not header.exists():
        return None
    try:
        return json.loads(header.read_text())
    except ValueError as error:
        raise OtherEvaluationError(f"{header} is damaged ({error}): give --restart to start again") from error


def _differences(saved: dict[str, Any] | None, current: dict[str, Any]) -> list[str]:
    """The differences between two evaluations, in words; `saved` is None if there was none."""
    if saved is None:
        return []
    current = json.loads(json.dumps(current))  # lists for tuples, as in the file
    words = []
    for name in sorted(saved.keys() | current.keys()):
        before, now = saved.get(name), current.get(name)
        if before != now:
            words.append(f"{name} differ" if name in ("weights", "class names") else f"{name} was {before}, is {now}")
    return words


def _read_results(folder: Path) -> list[ImageResult]:
    """The results in all files that this host sees."""
    results = []
    for file in list_record_files(folder, "host_*.jsonl"):
        content = read_records(file)
        content = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                results.append(ImageResult.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise OtherEvaluationError(
                    f"{file}, line {number} is damaged ({error}): give --restart to start again"
                ) from error
    return results


def _complete_length(file: Path) -> int:
    """Number of bytes up to the end of the last complete line."""
    return file.read_bytes().rfind(b"\n") + 1


def _is_current(result: ImageResult, source: Source) -> bool:
    try:
        return result.index < len(source) and source.version(result.index) == result.version
    except DataError:  # the sample's files are gone; reading them later raises the error
        return False
