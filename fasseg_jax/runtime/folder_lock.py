"""A lock on a folder, so that two trainings or imports do not write to the same one."""

import fcntl
import os
import socket
import time
from typing import TextIO

from fasseg_jax.runtime.files import Path

__all__ = ["lock_folder"]


def lock_folder(folder: Path, name: str = ".lock", what: str = "trains in") -> TextIO:
    """Lock a folder for this process.

    The operating system holds the lock, so that it ends with the process, however that ends.

    Args:
      folder: must exist.
      name: of the file in it that is locked; a host of several that share the folder has its own.
      what: says what the other process does with the folder.

    Returns:
      The locked file. Closing it ends the lock.

    Raises:
      ValueError: another process holds the lock; the message says which.
      OSError: the file cannot be made.
    """
    file = (folder / name).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip() or "another process"
        file.close()
        raise ValueError(f"{folder}: {holder} {what} this folder; stop it first, or name another folder") from None
    except OSError:
        return file  # this file system has no locks
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')},\n")
    file.flush()
    return file
