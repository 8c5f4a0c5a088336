"""Compilation: announcing it, keeping compiled programs on disk, measuring the time, and giving memory back."""

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import warnings
import zlib

import jax
from tqdm import tqdm

from fasseg_jax.runtime.command_line import print_error
from fasseg_jax.runtime.files import Path, WriteError, in_bucket, make_path, named_write_errors

__all__ = [
    "CompileTimer",
    "announce",
    "enable_compilation_cache",
    "release_compiler_memory",
]


class CompileTimer:
    """Adds up the seconds that JAX spends on compiling, or on loading what an earlier run compiled.

    Attributes:
      seconds: spent since the timer was made.
    """

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering, and XLA
            self.seconds += duration


def announce(message: str) -> None:
    """Print a line on stderr, above a progress bar if there is one; only on the first host."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs on disk, so that the next run with the same model and sizes loads them.

    Returns:
      The folder: that of the environment variable JAX_COMPILATION_CACHE_DIR if it is set, which may be in a bucket,
      else ~/.cache/fasseg_jax.
      None if it cannot be written, which a line on stderr says; programs are then compiled in each run.
    """
    # JAX itself would print a warning of several lines for each program.
    warnings.filterwarnings("ignore", message="Error (writing|reading) persistent compilation cache")
    try:
        folder = make_path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "fasseg_jax")
        with named_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if in_bucket(folder):  # where programs appear as a whole
                (folder / ".writable").write_bytes(b"")
            else:
                with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                    file.write(b"writable, and not full")
                _remove_truncated(folder)
    except (WriteError, ValueError, RuntimeError) as error:  # a `RuntimeError` if the user has no home
        advice = "compiled programs are not kept; JAX_COMPILATION_CACHE_DIR names another folder for them"
        print_error(f"{error}; {advice}", status=0)
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


def _remove_truncated(folder: Path) -> None:
    """Remove programs that were written in part, when a disk was full or a process was killed.

    JAX can neither read nor replace them, so that each run would compile them again. What an earlier call looked at is
    not read again. JAX compresses with zlib, or with zstandard where that is installed, whose files stay as they are.
    """
    looked_at = folder / ".looked_at"
    newest = looked_at.stat().st_mtime if looked_at.exists() else 0.0
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if entry.stat().st_mtime >= newest and not _is_whole(entry):
                entry.unlink()
    looked_at.touch()


def _is_whole(entry: Path) -> bool:
    """False if it begins as a file of zlib and does not end as one."""
    decompressor = zlib.decompressobj()
    with entry.open("rb") as file:
        start = file.read(1)
        if start and start != b"\x78":
            return True
        try:
            decompressor.decompress(start)
            while part := file.read(1 << 20):
                decompressor.decompress(part)
        except zlib.error:
            return False
    return decompressor.eof


def release_compiler_memory(traces: bool = False) -> None:
    """Give the memory that compiling took back to the system.

    The C library of Linux keeps what XLA has freed, a gigabyte after a training step. On other systems this does
    nothing.

    Args:
      traces: also drop JAX's caches of traced functions. JAX then traces a function again when it is called, unless the
        caller holds the compiled program.
    """
    if traces:
        jax.clear_caches()
        gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
