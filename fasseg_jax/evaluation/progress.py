"""Progress of an evaluation on disk, so that an interrupted one goes on, exactly as if it had not been.

FOLDER/evaluation.json holds what is evaluated: model, weights, data, settings. FOLDER/host_N.jsonl gets a line for each
image that host N has done, at once; since a line holds integer counts, neither order nor interruptions matter. A line
that was being written when the program was killed is dropped, and a sample whose files changed is evaluated again.
"""

import dataclasses
import hashlib
import json
import shutil
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import flat_fields
from fasseg_jax.data import DataError, Source
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.evaluate import ImageResult
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path, write_atomically

__all__ = ["EvaluationProgress", "OtherEvaluationError", "describe_evaluation"]

FORMAT = 1  # of the lines; lines of another are not mixed with these
# Fields of `config.data` without influence on results; a sample's version tells which file it is.
IMMATERIAL = ("data.num_threads", "data.prefetch", "data.root", "data.max_targets")


class OtherEvaluationError(ValueError):
    """The folder holds the progress of another evaluation; the message says what differs and what to do."""


def describe_evaluation(
    config: ConfigDict, variables: dict[str, Any], classes: ClassTable, predictions: str
) -> dict[str, Any]:
    """All that results depend on beside the samples themselves, as JSON holds it.

    Args:
      config: the whole configuration.
      variables: the model's; they enter by a digest of their numbers, wherever they were read from.
      classes: of the data.
      predictions: which label maps are written besides.
    """
    fields = flat_fields(ConfigDict({part: config[part] for part in ("data", "inference", "model")}))
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        leaf = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(leaf.view(np.uint8).reshape(-1))
    return {
        "format": FORMAT,
        **{f"config.{name}": value for name, value in fields.items() if name not in IMMATERIAL},
        "class names": list(classes.names),
        "weights": digest.hexdigest(),
        "predictions": predictions,
    }


@dataclasses.dataclass(frozen=True)
class EvaluationProgress:
    """The progress of one evaluation.

    Attributes:
      folder: where it lies.
      done: results by the index of their sample, from earlier runs and from all hosts.
      changed: how many samples were done but have changed since; they are not in `done`.
    """

    folder: Path
    done: dict[int, ImageResult]
    changed: int

    @classmethod
    def open(
        cls, folder: Path, evaluation: dict[str, Any], source: Source, restart: bool = False
    ) -> "EvaluationProgress":
        """Read what was done; all hosts must call it, and need not see the same files.

        Args:
          folder: of this progress alone; made if absent.
          evaluation: from `describe_evaluation`.
          source: of the samples.
          restart: discard what was done.

        Raises:
          OtherEvaluationError: it is the progress of another evaluation.
        """
        header = folder / "evaluation.json"
        if restart and header.exists():
            shutil.rmtree(folder, ignore_errors=True)  # as may another host at the same time
        differences = _differences(_read_header(header), evaluation)
        results = [] if differences else _read_results(folder)
        current = [result.to_json() for result in results if _is_current(result, source)]
        told = all_gather_objects(
            [differences, current, [result.index for result in results]]
        )  # before any host writes
        differences = next((differences for differences, *_ in told if differences), None)
        if differences:
            raise OtherEvaluationError(
                f"{folder.parent} holds another evaluation ({'; '.join(differences)}): give another --output, or "
                "--restart to discard it"
            )
        with write_atomically(header) as partial:
            partial.write_text(json.dumps(evaluation, indent=1))
        done = {fields["index"]: ImageResult.from_json(fields) for _, current, _ in told for fields in current}
        return cls(folder, done, changed=len({index for *_, indices in told for index in indices} - done.keys()))

    def writer(self) -> "ProgressWriter":
        """Where this host writes what it does."""
        return ProgressWriter(self.folder / f"host_{jax.process_index()}.jsonl")


class ProgressWriter:
    """Appends results to a file, each at once; a context manager."""

    def __init__(self, file: Path):
        """A line without an end, of a run that was killed, is cut off."""
        self._file = file.open("ab")
        self._file.truncate(_complete_length(file))

    def add(self, result: ImageResult) -> None:
        """Keep a result."""
        self._file.write(json.dumps(result.to_json()).encode() + b"\n")
        self._file.flush()

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
        raise OtherEvaluationError(f"{header} is damaged ({error}): give --restart to begin anew") from error


def _differences(saved: dict[str, Any] | None, current: dict[str, Any]) -> list[str]:
    """What differs between two evaluations, in words; `saved` is None where there was none."""
    if saved is None:
        return []
    words = []
    for name in sorted(saved.keys() | current.keys()):
        before, now = saved.get(name), current.get(name)
        if before != json.loads(json.dumps(now)):
            words.append(f"{name} differ" if name in ("weights", "class names") else f"{name} was {before}, is {now}")
    return words


def _read_results(folder: Path) -> list[ImageResult]:
    """What all files hold that this host sees."""
    results = []
    for file in sorted(folder.glob("host_*.jsonl")):
        content = file.read_bytes()[: _complete_length(file)]
        for number, line in enumerate(content.splitlines(), start=1):
            try:
                results.append(ImageResult.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise OtherEvaluationError(
                    f"{file}, line {number} is damaged ({error}): give --restart to begin anew"
                ) from error
    return results


def _complete_length(file: Path) -> int:
    """The length in bytes up to the end of the last complete line."""
    return file.read_bytes().rfind(b"\n") + 1


def _is_current(result: ImageResult, source: Source) -> bool:
    try:
        return result.index < len(source) and source.version(result.index) == result.version
    except DataError:  # its files are gone; reading them will say so
        return False
