"""Files to which a process appends records, of which none is lost or half there."""

import contextlib
import fnmatch
import os

from fasseg_jax.runtime.buckets import BucketPath, ObjectRecords, record_name
from fasseg_jax.runtime.files import Path, named_write_errors

__all__ = ["RecordFile", "has_records", "list_record_files", "read_records"]


class RecordFile:
    """A file to which records are appended, each at once. After an error it ends with a whole record.

    There is no buffer: what cannot be written is known when it is added, and nothing is left to do at the end. In a
    bucket, where nothing can be appended, records become objects NAME.00000001 and so on, a few seconds later or when
    the file is flushed or closed. `read_records` reads both.
    """

    def __init__(self, path: Path, length: int | None = None):
        """Open or make the file.

        Args:
          path: the file; its folder is made if absent.
          length: the bytes of it to keep, if not all. Objects in a bucket are whole, and all kept.

        Raises:
          WriteError: the file cannot be opened for writing.
        """
        self._path = path
        with named_write_errors(path):
            self._records = ObjectRecords(path) if isinstance(path, BucketPath) else _LocalRecords(path, length)

    def add(self, record: bytes) -> None:
        """Append a record.

        Raises:
          WriteError: it cannot be written; the file is as it was.
        """
        with named_write_errors(self._path):
            self._records.add(record)

    def flush(self) -> None:
        """Upload to a bucket what was added.

        Raises:
          WriteError: that fails.
        """
        with named_write_errors(self._path):
            self._records.flush()

    def close(self) -> None:
        """Close the file, and raise as `flush`."""
        with named_write_errors(self._path):
            self._records.close()


class _LocalRecords:
    """Records in a file."""

    def __init__(self, path: Path, length: int | None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        if length is not None:
            self._file.truncate(length)

    def add(self, record: bytes) -> None:
        begin = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(record)
            while rest:  # a disk that becomes full takes a part
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(begin)
            raise

    def flush(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        self._file.close()


def read_records(path: Path) -> bytes:
    """The records of a `RecordFile`; empty if there is none."""
    if isinstance(path, BucketPath):
        return b"".join(part.read_bytes() for part in ObjectRecords.parts(path))
    return path.read_bytes() if path.exists() else b""


def has_records(path: Path) -> bool:
    """Whether there is a `RecordFile` of this name."""
    return bool(ObjectRecords.parts(path)) if isinstance(path, BucketPath) else path.exists()


def list_record_files(folder: Path, pattern: str) -> list[Path]:
    """The paths of the `RecordFile`s in a folder whose names match a pattern, sorted."""
    if not isinstance(folder, BucketPath):
        return sorted(folder.glob(pattern))
    names = {record_name(part.name) for part in folder.glob("*")}
    return sorted(folder / name for name in names if fnmatch.fnmatchcase(name, pattern))
