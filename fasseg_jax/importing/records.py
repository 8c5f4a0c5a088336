"""What an import has written so far, so that a second run goes on where the first one stopped."""

import json
from typing import Any

from fasseg_jax.data.classes import DataError
from fasseg_jax.importing.writing import Written
from fasseg_jax.runtime.files import Path, RecordFile

__all__ = ["FILE", "LOCK", "ImportRecords", "earlier_keys"]

FILE = "import.jsonl"  # in the folder of the import: a line of settings, and one for each sample


LOCK = ".import.lock"  # there too


def earlier_keys(folder: Path) -> tuple[str, ...]:
    """The keys of the samples that earlier imports wrote into a folder.

    Raises:
      DataError: the folder holds other files, or its records are damaged.
    """
    lines, _ = _whole_lines(folder / FILE) if folder.is_dir() else ([], 0)
    others = folder.exists() and not (folder.is_dir() and all(entry.name in (FILE, LOCK) for entry in folder.iterdir()))
    if not lines and others:
        raise DataError(f"{folder} holds other files; name a new folder by --output")
    return tuple(line["key"] for line in lines[1:])


class ImportRecords:
    """The file of records of an import."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        """Open the file, or begin it.

        Args:
          folder: of the import.
          settings: what all samples depend on.

        Raises:
          DataError: the folder holds an import with other settings.
          WriteError: the folder cannot be written.
        """
        self.folder = folder
        path = folder / FILE
        settings = json.loads(json.dumps(settings))
        lines, length = _whole_lines(path)
        if lines and lines[0] != settings and lines[1:]:
            changed = [name for name in settings if lines[0].get(name) != settings[name]]
            raise DataError(
                f"{folder} holds an import with another {' and another '.join(changed) or 'version'}; "
                "name a new folder by --output, or delete that one"
            )
        self.known: dict[str, dict[str, Any]] = {line["key"]: line for line in lines[1:]}
        begins = not lines or lines[0] != settings  # no sample is there yet
        self._file = RecordFile(path, 0 if begins else length)
        if begins:
            self._file.add(_line(settings))

    def complete(self, key: str, version: str) -> Written | None:
        """What was written for a sample, if it is still there and its annotation did not change."""
        record = self.known.get(key)
        if record is None or record["version"] != version:
            return None
        for name, size in record["files"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        return Written(record["files"], tuple(record["notes"]))

    def add(self, key: str, version: str, written: Written) -> None:
        """Note that a sample is complete."""
        record = {"key": key, "version": version, "files": written.files, "notes": list(written.notes)}
        self.known[key] = record
        self._file.add(_line(record))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a file, and their length in bytes; a line that a kill cut off is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    content = content[: content.rfind(b"\n") + 1]
    try:
        lines = [json.loads(line) for line in content.splitlines()]
        if lines and all({"key", "version", "files", "notes"} <= line.keys() for line in lines[1:]):
            return lines, len(content)
        if not lines:
            return [], 0
    except (ValueError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path}: is damaged; delete {path.parent} and import again")
