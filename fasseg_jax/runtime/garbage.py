"""Python's search for garbage, where it would find none. It imports no JAX, so that programs start with it."""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["paused_garbage_collection"]


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Do not look for garbage in the block, which imports a program or traces a large function.

    Both make millions of objects, which are in use until the end. Python would search them again and again: half a
    second of an import, a third of the time of tracing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
