"""Peak memory of this process, as Linux counts it."""

import ctypes
import gc
from pathlib import Path

__all__ = ["peak_mb", "restart_peak"]


def peak_mb() -> float:
    """Peak memory of this process, since the last `restart_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def restart_peak() -> None:
    """Let the kernel measure the peak again, without the memory that compilation has freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
