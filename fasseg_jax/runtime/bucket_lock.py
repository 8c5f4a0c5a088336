"""A lock on an object in a bucket. It has no operating system that would end it with its process.

So the holder writes the object again and again. Whoever wants the lock watches the object: if it stays as it is for
`STALE` seconds, its holder is dead, and the lock is taken over. No clock needs to be right. Each write names the
generation that it replaces, so that of several processes only one gets the lock, and a holder that was suspended for
longer than `STALE` notices that it has lost it.
"""

import atexit
import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time

from fasseg_jax.runtime.buckets import BucketPath
from fasseg_jax.runtime.command_line import print_error

__all__ = ["REFUSED", "lock_object"]

BEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which the holder is taken for dead
REFUSED = "this folder; stop it first, or name another folder"


class ObjectLock:
    """A lock that is held, with a thread that gives signs of life. A context manager; its end removes the object."""

    def __init__(self, path: BucketPath, content: bytes, generation: str):
        """The object has this content and generation."""
        self._path, self._content, self._generation = path, content, generation
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._generation = self._path.storage.write_if(self._path.key, self._content, self._generation)
            except FileExistsError:
                if self._is_ours():  # only the answer to an earlier try was lost
                    continue
                lost = f"{self._path.parent}: another process has taken over this folder, because for {STALE:.0f} s"
                print_error(f"{lost} this one gave no sign of life; it ends, and writes nothing more", status=1)
                sys.stdout.flush()
                os._exit(1)
            except OSError:  # the network is away; perhaps it comes back in time
                continue

    def _is_ours(self) -> bool:
        with contextlib.suppress(OSError):
            found = _read(self._path)
            if found is not None and found[0] == self._content:
                self._generation = found[1]
                return True
            return False
        return True  # it cannot be read now: ask again later

    def close(self) -> None:
        """End the lock."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            atexit.unregister(self.close)
            with contextlib.suppress(OSError):  # else others wait until it is stale
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> "ObjectLock":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def lock_object(path: BucketPath, holder: str, what: str) -> ObjectLock:
    """Lock an object for this process.

    If another process holds it, this waits until that one gives a sign of life, `BEAT` seconds, or is taken for dead,
    `STALE` seconds. A dead process of this machine is recognized at once.

    Args:
      path: the object.
      holder: this process, in words.
      what: says what the other process does with the folder.

    Raises:
      ValueError: another process holds the lock; the message says which.
      OSError: the bucket cannot be read or written.
    """
    content = json.dumps({"holder": holder, "process": os.getpid(), "machine": _machine(), "time": time.time_ns()})
    announced = False
    generation, since = "0", time.monotonic()
    while True:
        found = _read(path)
        current = found[1] if found else "0"
        if found and announced and current != generation:
            raise ValueError(f"{path.parent}: {_words(found[0])} {what} {REFUSED}")
        if not announced or current != generation:
            generation, since = current, time.monotonic()
        if found is None or _is_dead(found[0]) or time.monotonic() - since >= STALE:
            with contextlib.suppress(FileExistsError):  # another process was faster
                new = path.storage.write_if(path.key, content.encode(), generation)
                return ObjectLock(path, content.encode(), new)
            continue
        if not announced:
            wait = f"waiting up to {STALE:.0f} s for a sign of life of {_words(found[0])} which has locked this folder"
            print_error(f"{path.parent}: {wait}", status=0)
            announced = True
        time.sleep(min(2.0, STALE / 10))


def _read(path: BucketPath) -> tuple[bytes, str] | None:
    """Content and generation of an object; None if it does not exist."""
    try:
        generation = path.stat().generation
        if not generation:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return path.read_bytes(), generation
    except FileNotFoundError:
        return None


def _words(content: bytes) -> str:
    try:
        return str(json.loads(content)["holder"])[:200]
    except (ValueError, KeyError, TypeError):
        return "another process"


def _is_dead(content: bytes) -> bool:
    """Whether the holder ran on this machine, and runs no more."""
    try:
        fields = json.loads(content)
        process, machine = fields["process"], fields["machine"]
        if machine != _machine() or not isinstance(process, int):
            return False
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, OSError, OverflowError):
        return False
    return False


def _machine() -> list[str]:
    """What tells this machine from others, and from itself before it was started again: also a container."""
    facts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        facts.append(file.read().strip())
    return facts if len(facts) == 3 else [*facts, f"unknown {time.time_ns()}"]
