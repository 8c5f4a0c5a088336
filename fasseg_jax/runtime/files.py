"""Files and folders.

The package takes `Path` from here, finds files by `list_files`, and writes what must never be half there by
`write_atomically`. So this module alone decides which storage a path may name; today it is the local file system.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

__all__ = ["Path", "list_files", "require_regular_file", "write_atomically"]


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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
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
