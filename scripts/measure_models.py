"""Measure every recipe for docs/choosing.md: parameters, multiply-adds, time and memory of a forward pass.

    python scripts/measure_models.py

It writes scripts/models.json, which docs/hooks/models.py shows. Recipes that the file has already are not measured
again, so an interrupted run goes on; for another machine, remove the file. Each recipe runs in a process of its own, by
benchmarks/forward.py, with one image of 512x512 in float32. It takes half a minute a recipe.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "scripts" / "models.json"
SIZE = "512x512"

ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed runs of each recipe.", lower_bound=1)


def recipes() -> list[str]:
    """FILE:VARIANT of the recipes for public data sets, FASeg's and the published ones of Mask2Former."""
    published = json.loads((ROOT / "scripts" / "published.json").read_text("utf-8"))
    found = []
    for name in ("ade20k", "cityscapes"):
        spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [f"{name}:{variant}" for variant in module.BACKBONES]
    return [*found, *(name for name in published if "mask2former" in name)]


def measure(recipe: str) -> dict[str, Any]:
    """The figures of one recipe."""
    name, _, variant = recipe.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "forward.json")
        command = [sys.executable, ROOT / "benchmarks" / "forward.py", f"--contenders=configs/{name}.py:{variant}"]
        command += [f"--size={SIZE}", f"--rounds={ROUNDS.value}", f"--output={output}"]
        subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (result,) = json.loads(output.read_text("utf-8"))["results"]
    return {
        "parameters": result["parameters"],
        "multiply_adds": result["flop"] // 2,
        "seconds": round(result["median_s"], 3),
        "slowest": round(result["max_s"], 3),
        "peak_mb": round(result["peak_running_mb"]),
    }


def machine() -> str:
    """This machine in words."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {names[0] if names else platform.machine()}, jax {jax.__version__}"


def main(_: list[str]) -> None:
    """Measure what is missing, and write the file after each recipe."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"models": {}}
    results |= {"machine": results.get("machine", machine()), "size": SIZE}
    if results["machine"] != machine():
        raise SystemExit(f"{RESULTS} is of another machine ({results['machine']}); remove it to measure here")
    for recipe in recipes():
        if recipe not in results["models"]:
            results["models"][recipe] = measure(recipe)
            print(recipe, results["models"][recipe], flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    app.run(main)
