"""Compilation: announcing it, keeping compiled programs on disk, measuring the time, and giving memory back."""

import contextlib
import ctypes
import gc
import os
import sys

import jax
from tqdm import tqdm

from fasseg_jax.runtime.files import Path

__all__ = ["CompileTimer", "announce", "enable_compilation_cache", "release_compiler_memory"]


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


def enable_compilation_cache() -> Path:
    """Keep compiled programs on disk, so that the next run with the same model and sizes loads them.

    Returns:
      The folder: that of the environment variable JAX_COMPILATION_CACHE_DIR if it is set, else ~/.cache/fasseg_jax.
    """
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path.home() / ".cache" / "fasseg_jax")
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


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
