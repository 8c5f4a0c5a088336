"""Files and folders.

The package takes `Path` from here, finds files by `list_files`, and writes what must never be half there by
`write_atomically` and `RecordFile`. So this module alone decides which storage a path may name; today it is the local
file system. What cannot be written, for example because the disk is full, raises a `WriteError`.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

__all__ = [
    "Path",
    "RecordFile",
    "WriteError",
    "list_files",
    "named_write_errors",
    "require_regular_file",
    "write_atomically",
]


class WriteError(OSError):
    """A file or folder cannot be written. The message, one line, names it and the reason."""


@contextlib.contextmanager
def named_write_errors(path: Path, errors: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """Turn errors of writing a file or folder into a `WriteError` that names it.

    Libraries leave the name out of many errors, or name a temporary file.

    Args:
      path: what is written in the block.
      errors: what a library raises if the disk is full.
    """
    try:
        yield
    except WriteError:
        raise
    except errors as error:
        raise _write_error(path, error) from error


def _write_error(path: Path, error: Exception) -> WriteError:
    """The error in words; it names the folder if that is at fault."""
    named = getattr(error, "filename", None)
    culprit = Path(named) if isinstance(named, str) and Path(named) in path.parents else path
    reason = getattr(error, "strerror", None) or _reason_in(str(error))
    if os.path.islink(culprit) and not os.path.exists(culprit):  # unlike those of `Path`, these raise no errors
        reason = "it is a symbolic link to something that does not exist"
    elif getattr(error, "errno", None) == errno.EEXIST:
        reason = "it is a file, not a folder"
    return WriteError(f"cannot write {culprit}: {reason}")


def _reason_in(message: str) -> str:
    """The system's reason that a library quotes in its message, or the message."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS):
        if os.strerror(number) in message:
            return os.strerror(number)
    return f"{' '.join(message.split())[:200]}; is the disk full?"


class RecordFile:
    """A file to which records are appended, each at once. After an error it ends with a whole record.

    There is no buffer: what cannot be written is known when it is added, and nothing is left to do at the end.
    """

    def __init__(self, path: Path, length: int | None = None):
        """Open or make the file.

        Args:
          path: the file; its folder is made if absent.
          length: the bytes of it to keep, if not all.

        Raises:
          WriteError: the file cannot be opened for writing.
        """
        self._path = path
        with named_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            if length is not None:
                self._file.truncate(length)

    def add(self, record: bytes) -> None:
        """Append a record.

        Raises:
          WriteError: it cannot be written; the file is as it was.
        """
        with named_write_errors(self._path):
            begin = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(record)
                while rest:  # a disk that becomes full takes a part
                    rest = rest[self._file.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(begin)
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Make a file appear under its name only when it is complete.

        with write_atomically(path) as partial:
            np.savez(partial, **arrays)

    The caller writes to a file of the same name in a temporary folder. When the block ends, that file takes the place
    of whatever `path` held; if the block raises, `path` stays as it was. Several processes may write the same file at
    once: the last one wins.

    Args:
      path: the file; its folder is made if absent.

    Yields:
      The path to write to.

    Raises:
      WriteError: it cannot be written. The block's errors that are no `OSError` are raised as they are.
    """
    with named_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
            partial = Path(folder, path.name)
            yield partial
            partial.replace(path)


def require_regular_file(path: Path) -> None:
    """Raise an `OSError` for pipes, sockets and devices, which reading may never end; others raise when opened."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))


def list_files(folder: Path, exclude: Path | None = None) -> list[Path]:
    """List the files below a folder, sorted by path.

    Symbolic links are followed; each folder is visited once. Hidden folders are left out.

    Args:
      folder: is searched with all its subfolders.
      exclude: a subfolder to leave out.

    Raises:
      OSError: a folder cannot be read.
    """
    visited = {exclude.resolve()} if exclude else set()
    paths: list[Path] = []
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        if Path(parent).resolve() in visited:
            folders.clear()
            continue
        visited.add(Path(parent).resolve())
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent) / name for name in files]
    return sorted(paths)


def _raise(error: OSError) -> NoReturn:
    raise error
