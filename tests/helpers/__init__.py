"""What several tests share."""

import os
from pathlib import Path

import jax

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"

# LLVM's optimizations and XLA's newer code generator for fused operations take two thirds of the time to compile, and
# change results by rounding at most. The tests do without, unless the variable says otherwise:
# XLA_FLAGS=--xla_backend_optimization_level=3 pytest
FAST_COMPILATION = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later versions have no other generator, and end at flags that they do not know
    FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int = 1) -> str:
    """XLA_FLAGS for a process with so many simulated devices."""
    given = os.environ.get("XLA_FLAGS", "")
    level = "" if "xla_backend_optimization_level" in given else FAST_COMPILATION
    return f"{given} {level} --xla_force_host_platform_device_count={devices}".strip()


def error_lines(stderr: str) -> list[str]:
    """The lines that a program printed on stderr, without those that announce a compilation."""
    return [line for line in stderr.splitlines() if not line.startswith("Compiling the ")]
