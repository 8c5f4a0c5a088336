"""A lock on a folder, so that two trainings or imports do not write to the same one."""

import contextlib
import fcntl
import os
import socket
import time
from typing import Any

from fasseg_jax.runtime.bucket_lock import REFUSED, lock_object
from fasseg_jax.runtime.buckets import BucketPath
from fasseg_jax.runtime.files import Path

__all__ = ["lock_folder"]


def lock_folder(folder: Path, name: str = ".lock", what: str = "trains in") -> contextlib.AbstractContextManager[Any]:
    """Lock a folder for this process.

    The operating system holds the lock, so that it ends with the process, however that ends. In a bucket the lock is an
    object, which outlives a process that is killed; see `lock_object`.

    Args:
      folder: must exist.
      name: of the file in it that is locked; a host of several that share the folder has its own.
      what: says what the other process does with the folder.

    Returns:
      The lock; the end of a `with` block ends it.

    Raises:
      ValueError: another process holds the lock; the message says which.
      OSError: the file cannot be made.
    """
    if isinstance(folder, BucketPath):
        return lock_object(folder / name, who(), what)
    file = (folder / name).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise ValueError(f"{folder}: {holder} {what} {REFUSED}") from None
    except OSError:
        return file  # this file system has no locks
    file.truncate(0)
    file.write(f"{who()}\n")
    file.flush()
    os.fsync(file.fileno())  # so that other hosts see it
    return file


def who() -> str:
    """This process, in words."""
    return f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')},"
