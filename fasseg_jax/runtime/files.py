"""Files and folders.

The package makes paths of texts by `make_path`, finds files by `list_files`, and writes what must never be half there
by `write_atomically` and `RecordFile`. So this chapter alone decides which storage a path may name: the local file
system, or a bucket (`fasseg_jax.runtime.buckets`), whose paths have the methods of `Path`. What cannot be written, for
example because the disk is full, raises a `WriteError`.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fasseg_jax.runtime.buckets import SCHEME, BucketPath, file_system

__all__ = [
    "Path",
    "WriteError",
    "copy_file",
    "file_state",
    "in_bucket",
    "list_files",
    "local_copy",
    "local_folder",
    "make_path",
    "named_write_errors",
    "remove_folder",
    "require_regular_file",
    "write_atomically",
]

SOME_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also of what `Path` makes of gs://BUCKET


def make_path(text: str | os.PathLike) -> Path:
    """Make a path of what a user or a configuration names.

    Args:
      text: a path of the local file system, or gs://BUCKET/NAME. A path stays as it is.

    Raises:
      ValueError: the text names another kind of storage; or a bucket, and gcsfs is not installed.
    """
    if isinstance(text, BucketPath):
        return text
    name = os.fspath(text)
    if name.startswith(SCHEME):
        if not name.removeprefix(SCHEME).strip("/"):
            raise ValueError(f"{name}: name a bucket, gs://BUCKET/FOLDER")
        try:
            file_system()
        except ImportError as error:
            raise ValueError(f"{name}: {error}") from error
        return BucketPath(name)
    if SOME_SCHEME.match(name):
        raise ValueError(
            f"{name}: only local paths and buckets of Google Cloud Storage (gs://BUCKET/FOLDER) can be read and written"
        )
    return Path(text)


def in_bucket(path: os.PathLike) -> bool:
    """Whether a path names an object in a bucket, which only its own methods can open."""
    return isinstance(path, BucketPath)


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
    if isinstance(path, BucketPath):
        return _bucket_write_error(path, error)
    named = getattr(error, "filename", None)
    culprit = Path(named) if isinstance(named, str) and Path(named) in path.parents else path
    reason = getattr(error, "strerror", None) or _reason_in(str(error))
    if os.path.islink(culprit) and not os.path.exists(culprit):  # unlike those of `Path`, these raise no errors
        reason = "it is a symbolic link to something that does not exist"
    elif getattr(error, "errno", None) == errno.EEXIST:
        reason = "it is a file, not a folder"
    return WriteError(f"cannot write {culprit}: {reason}")


def _bucket_write_error(path: BucketPath, error: Exception) -> WriteError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    named = getattr(error, "filename", None)
    if isinstance(error, FileNotFoundError) and reason == os.strerror(errno.ENOENT):
        reason = "there is no such bucket"
    elif isinstance(named, str) and not named.startswith((SCHEME, "http")):
        reason = f"{reason} ({named})"  # a local file, written before it is uploaded
    return WriteError(f"cannot write {path}: {reason}")


def _reason_in(message: str) -> str:
    """The system's reason that a library quotes in its message, or the message."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS):
        if os.strerror(number) in message:
            return os.strerror(number)
    return f"{' '.join(message.split())[:200]}; is the disk full?"


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
    if isinstance(path, BucketPath):
        with named_write_errors(path), tempfile.TemporaryDirectory(prefix="fasseg-") as folder:
            yield (partial := Path(folder, path.name))
            path.upload(partial)
        return
    with named_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as folder:
            partial = Path(folder, path.name)
            yield partial
            partial.replace(path)


def require_regular_file(path: Path) -> None:
    """Raise an `OSError` for pipes, sockets and devices, which reading may never end; others raise when opened."""
    if not in_bucket(path) and path.exists() and not path.is_file() and not path.is_dir():
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
    if isinstance(folder, BucketPath):
        return _list_objects(folder, exclude)
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


def _list_objects(folder: BucketPath, exclude: Path | None) -> list[Path]:
    found = folder.files()
    if not found and not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    hidden = (any(name.startswith(".") for name in path.relative_to(folder).parts[:-1]) for path in found)
    return [path for path, out in zip(found, hidden, strict=True) if not out and exclude not in path.parents]


def _raise(error: OSError) -> NoReturn:
    raise error


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Give a file or folder as one of the local file system, for libraries that open nothing else.

    Args:
      path: the file or folder. Objects are downloaded to a temporary folder, which the block's end removes.

    Raises:
      OSError: it cannot be downloaded.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fasseg-") as folder:
        copy = Path(folder, path.name)
        for file in path.files() if path.is_dir() else [path]:
            part = copy / file.relative_to(path).as_posix()
            part.parent.mkdir(parents=True, exist_ok=True)
            file.download(part)
        yield copy


def copy_file(file: Path, target: Path) -> None:
    """Copy a local file; the copy appears under its name only when it is complete.

    Raises:
      WriteError: it cannot be written.
    """
    with write_atomically(target) as partial:
        shutil.copyfile(file, partial)


@contextlib.contextmanager
def local_folder(path: Path) -> Iterator[Path]:
    """Give a folder as one of the local file system, for libraries that write nowhere else.

    Args:
      path: the folder. For one in a bucket, the files of a temporary folder are uploaded at the end of the block.

    Raises:
      WriteError: a file cannot be uploaded.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fasseg-") as temporary:
        yield Path(temporary)
        for file in list_files(Path(temporary)):
            target = path / file.relative_to(temporary).as_posix()
            copy_file(file, target)


def remove_folder(path: Path) -> None:
    """Remove a folder with all that it holds, if it is there; on a local disk, as far as that is possible."""
    if isinstance(path, BucketPath):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def file_state(path: Path) -> str:
    """Size in bytes and time of the last change in ns (in a bucket, the generation), which tell a file from later ones.

    Raises:
      OSError: the file is absent, or cannot be examined.
    """
    if isinstance(path, BucketPath):
        found = path.stat()
        return f"{found.st_size} {found.generation}"
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
