"""Runs train.py in processes of its own, with a model so tiny that compiling takes most of the time."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT, xla_flags
from tests.helpers.tiny import TINY_MODEL

TINY = {
    "data.shapes.size": "(64,64)",
    "data.shapes.training": 40,
    "data.shapes.validation": 4,
    "augmentation.short_sides": "(64,)",
    "augmentation.crop": "(64,64)",
    "inference.short_side": 64,
    "model.backbone.width": 8,
    **{f"model.{name}": value for name, value in TINY_MODEL.items()},
    "model.decoder.num_layers": 2,  # compiles in half the time
    "loss.num_points": 64,
    "train.log_every": 1,
    "train.steps": 4,
    "train.evaluate_every": 100,
    "train.checkpoint_every": 100,
}


def command(workdir: Path, **overrides) -> list[str]:
    """The command line of a tiny run; overrides name configuration fields with __ for dots."""
    fields = {**TINY, **{name.replace("__", "."): value for name, value in overrides.items()}}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    return [sys.executable, "train.py", "--config", "configs/shapes.py", "--workdir", str(workdir), *settings]


def environment(devices: int = 1, **variables: str) -> dict[str, str]:
    """With simulated CPU devices, the tests' compilation cache, and no PyTorch.

    tensorboardX imports PyTorch where it is, which takes seconds; users of this package need not have it.
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "without_torch"), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache/jax")),
        **variables,
    }


def train(workdir: Path, devices: int = 1, status: int = 0, **overrides) -> subprocess.CompletedProcess:
    """Run to the end; the exit status must be `status`."""
    process = subprocess.run(
        command(workdir, **overrides),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == status, process.stdout + process.stderr
    return process


def metrics(workdir: Path, name: str = "loss") -> dict[int, float]:
    """Values of a metric by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}
