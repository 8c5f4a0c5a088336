"""Progress of predicting many photos, on one host or several, so that a killed prediction does none of them twice.

OUTPUT/.progress/prediction.json says what is predicted: model, settings, what is written. OUTPUT/.progress/host_N.jsonl
gets a line when host N has written the results of a photo. The folder is removed when all photos are done.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import jax

from fasseg_jax.config import flat_fields
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.agreement import fail_together, require_equal, version_facts
from fasseg_jax.runtime.distributed import all_gather_objects
from fasseg_jax.runtime.files import Path, file_state, list_files, remove_folder, write_atomically
from fasseg_jax.runtime.record_file import RecordFile, list_record_files, read_records
from fasseg_jax.weights.digest import variables_digest

__all__ = ["PhotoProgress"]


class PhotoProgress:
    """What is done of a prediction, and what this host is to do. A context manager; it closes the file of this host.

    Attributes:
      share: the photos that this host is to do: {path: name of its results below the output folder}.
      num_done: how many photos earlier runs have done.
    """

    def __init__(self, output: Path, segmenter: Segmenter, photos: dict[Path, Path], writes: dict[str, Any]):
        """Read what earlier runs have done. All hosts must call this; they need not see the same output folder.

        Args:
          output: folder of the results.
          segmenter: the model.
          photos: all photos, as `share`.
          writes: what else the files of a photo depend on.

        Raises:
          ValueError: another host was started otherwise.
          WriteError: the folder cannot be written.
        """
        self._folder = output / ".progress"
        self._records: RecordFile | None = None
        self.share, self.num_done = photos, 0
        if len(photos) == 1 and jax.process_count() == 1:
            return  # there is nothing to resume
        prediction = _describe(segmenter, writes)
        names = "\n".join(map(str, photos.values()))
        digest = hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=16).hexdigest()
        require_equal({**prediction, **version_facts(), "the hash of the photos' names": digest})
        with fail_together():
            header = self._folder / "prediction.json"
            same = header.exists() and header.read_text() == json.dumps(prediction)
            done = _read_done(self._folder, output, photos) if same else []
            if not same and jax.process_index() == 0:
                remove_folder(self._folder)
                with write_atomically(header) as partial:
                    partial.write_text(json.dumps(prediction))
        known = {name for host in all_gather_objects(done) for name in host}  # before any host writes
        left = [(path, name) for path, name in photos.items() if str(name) not in known]
        self.num_done = len(photos) - len(left)
        self.share = dict(left[jax.process_index() :: jax.process_count()])
        self._records = RecordFile(self._folder / f"host_{jax.process_index()}.jsonl")

    def add(self, path: Path, name: Path) -> None:
        """Say that the results of a photo are written."""
        if self._records:
            self._records.add(json.dumps([str(name), file_state(path)]).encode() + b"\n")

    def finish(self) -> None:
        """Forget what is done: all is. All hosts must call this, when all have done their share."""
        if not self._records:
            return
        with fail_together():
            self._records.close()
        with fail_together():
            if jax.process_index() == 0:
                remove_folder(self._folder)

    def __enter__(self) -> "PhotoProgress":
        return self

    def __exit__(self, *_) -> None:
        if self._records:
            self._records.close()


def _describe(segmenter: Segmenter, writes: dict[str, Any]) -> dict[str, str]:
    """Everything except the photos that the results depend on: name -> value, in words."""
    config, classes = segmenter.config, segmenter.classes
    fields = {f"config.{name}": value for name, value in flat_fields(config).items()}
    kept = {name: value for name, value in fields.items() if name.startswith(("config.inference.", "config.model."))}
    table = {} if classes is None else {"the classes": [classes.names, classes.palette.tolist()]}
    facts = {**kept, **table, "the weights": variables_digest(segmenter.variables), **writes}
    return {name: str(value) for name, value in facts.items()}


def _read_done(folder: Path, output: Path, photos: dict[Path, Path]) -> list[str]:
    """Names of the photos whose results are there, and which have not changed since."""
    states: dict[str, str] = {}
    for file in list_record_files(folder, "host_*.jsonl"):
        states.update(_read_lines(read_records(file)))
    if not states:
        return []
    present = {str(path) for path in list_files(output)}
    return [
        str(name)
        for path, name in photos.items()
        if str(name) in states and str(output / f"{name}_labels.png") in present and _state(path) == states[str(name)]
    ]


def _read_lines(content: bytes) -> Iterable[tuple[str, str]]:
    """The lines that are whole: what a killed run left half there is done again."""
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            name, state = json.loads(line)
        except (ValueError, TypeError):
            continue
        yield name, state


def _state(path: Path) -> str | None:
    try:
        return file_state(path)
    except OSError:  # reading it later says why
        return None
