"""Measure the recipes of configs/ade20k.py for docs/choosing.md: parameters, multiply-adds, time and memory.

    python scripts/measure_models.py --dtype float32 --batch 2

It writes scripts/models.json, which docs/hooks/models.py shows. First it compiles programs side by side, then it times
one after the other; each has a process of its own, benchmarks/model_program.py. What a folder or the file has already
is not done again, so an interrupted run goes on. The most important recipes come first, and --deadline_s ends both
parts early. A file is of one machine, dtype and batch: for others, name another --folder and --output.

    python scripts/measure_models.py --jobs 12 --folder out/gpu --output out/gpu.json
    python scripts/measure_models.py --dtype float32 --batch 2 --count

The latter only counts parameters and multiply-adds, which are those of every machine.
"""

import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from absl import app, flags

ROOT = Path(__file__).parents[1]
FIRST = ("dinov3_l", "dinov2_b", "dinov3_s", "r50", "swin_l", "convnext_t", "swin_t", "dinov3_b", "convnext_l")
FROZEN = ("dinov3_l", "dinov2_b", "dinov3_s")

JOBS = flags.DEFINE_integer("jobs", 1, "Programs that are compiled at once.", lower_bound=1)
READY = flags.DEFINE_integer("ready", 3, "Programs that are loaded at once; one of them runs.", lower_bound=1)
DEADLINE = flags.DEFINE_float("deadline_s", None, "Seconds after which no program is begun, in all.")
COMPILE = flags.DEFINE_float("compile_s", None, "Seconds after which no compilation is begun.")
LIMIT = flags.DEFINE_float("limit_s", 900, "Seconds after which a program's process is ended.")
COMPILE_ONLY = flags.DEFINE_boolean("compile_only", False, "Compile, and measure in another run.")
RECIPES = flags.DEFINE_list("recipes", None, "Variants of configs/ade20k.py, in place of all.")
COUNT = flags.DEFINE_boolean("count", False, "Only count parameters and multiply-adds, and time nothing.")
PROGRAMS = flags.DEFINE_list("programs", None, "Programs such as forward_1, train_8, frozen_8, in place of all.")
BATCH = flags.DEFINE_integer("batch", 8, "Images of a training step and of the larger forward pass.")
SIDE = flags.DEFINE_integer("side", 512, "Side of the square images.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Dtype of the computation.")
FOLDER = flags.DEFINE_string("folder", str(ROOT / "out" / "programs"), "Folder for compiled programs.")
OUTPUT = flags.DEFINE_string("output", str(ROOT / "scripts" / "models.json"), "File of the figures.")


def recipes() -> list[str]:
    """The variants of configs/ade20k.py, and those of Mask2Former that are published; the most important first."""
    spec = importlib.util.spec_from_file_location("ade20k", ROOT / "configs" / "ade20k.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    published = json.loads((ROOT / "scripts" / "published.json").read_text("utf-8"))
    found = [*module.BACKBONES]
    found += [name.removeprefix("ade20k:") for name in published if name.startswith("ade20k:mask2former")]
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def chosen_recipes() -> list[str]:
    """Those of --recipes, or all."""
    if unknown := set(RECIPES.value or []) - set(recipes()):
        raise app.UsageError(f"--recipes: {', '.join(sorted(unknown))} is none of {', '.join(recipes())}")
    return RECIPES.value or recipes()


def programs() -> list[tuple[str, str]]:
    """(recipe, program) of all that is asked for, the most important first."""
    chosen = chosen_recipes()
    if PROGRAMS.value:
        return [(recipe, program) for recipe in chosen for program in PROGRAMS.value]
    first, others = ([name for name in chosen if (name in FIRST) == first] for first in (True, False))
    frozen = [name for name in chosen if name in FROZEN]
    forward, train = f"forward_{BATCH.value}", f"train_{BATCH.value}"
    order = [("forward_1", first[:1]), (train, first), (f"frozen_{BATCH.value}", frozen), (forward, first)]
    order += [("forward_1", first), (train, others), ("forward_1", others), (forward, others)]
    return list(dict.fromkeys((recipe, program) for program, names in order for recipe in names))


class Figures:
    """The file of the figures, written after each program."""

    def __init__(self, file: Path):
        self.file = file
        self.content: dict[str, Any] = {"models": {}}
        self.lock = threading.Lock()
        if file.exists():
            self.content = json.loads(file.read_text("utf-8"))
            side, dtype = self.content["side"], self.content.get("machine", {}).get("dtype", DTYPE.value)
            if (side, dtype) != (SIDE.value, DTYPE.value):
                raise SystemExit(f"{file} is of side {side} in {dtype}; name another file by --output")
            if (batch := self.content.get("batch", BATCH.value)) != BATCH.value:
                raise SystemExit(f"{file} is of batches of {batch}; name another file by --output")
        self.content |= {"side": SIDE.value, "batch": BATCH.value}

    def has(self, recipe: str, program: str) -> bool:
        """Whether the program has been measured."""
        return program in self.content["models"].get(f"ade20k:{recipe}", {}).get("programs", {})

    def add(self, recipe: str, program: str, result: dict[str, Any]) -> None:
        """Write the result of a program. The figures of all programs are of one machine, size and dtype."""
        with self.lock:
            machine = {"device": result.pop("device"), "jax": result.pop("jax")}
            machine["dtype"] = DTYPE.value
            if self.content.setdefault("machine", machine) != machine:
                raise SystemExit(
                    f"{self.file} is of {self.content['machine']}, not of {machine}; name another by --output"
                )
            model = self.content["models"].setdefault(f"ade20k:{recipe}", {"programs": {}})
            for name in {"parameters", "multiply_adds"} & result.keys():
                model[name] = result.pop(name)
            model["programs"][program] = result
            self._write()

    def add_counts(self, recipe: str, counts: dict[str, int]) -> None:
        """Write a model's parameters and multiply-adds."""
        with self.lock:
            self.content["models"].setdefault(f"ade20k:{recipe}", {"programs": {}}).update(counts)
            self._write()

    def _write(self) -> None:
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", "utf-8")
        partial.replace(self.file)


def count(figures: Figures) -> None:
    """Count parameters and multiply-adds of what is not counted yet, for one image."""
    import jax
    import jax.numpy as jnp

    from fasseg_jax.config import load_config
    from fasseg_jax.models.fasseg import build_model, initial_variables
    from fasseg_jax.summary.flops import count_multiply_adds

    for recipe in chosen_recipes():
        if "multiply_adds" in figures.content["models"].get(f"ade20k:{recipe}", {}):
            continue
        model = build_model(load_config(f"{ROOT}/configs/ade20k.py:{recipe}").model)
        variables = jax.eval_shape(lambda model=model: initial_variables(model, 0))
        image = jax.ShapeDtypeStruct((1, SIDE.value, SIDE.value, 3), jnp.float32)
        multiply_adds = count_multiply_adds(jax.make_jaxpr(model.apply)(variables, image).jaxpr).total()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        figures.add_counts(recipe, {"parameters": parameters, "multiply_adds": multiply_adds})
        print(recipe, figures.content["models"][f"ade20k:{recipe}"], flush=True)


def work(recipe: str, program: str, compile_only: bool, until: float) -> dict[str, Any] | None:
    """What a program's process printed last; None, and a line that says why, if it failed or is too late to begin."""
    begin = time.monotonic()
    if begin > until:
        return None
    command = [sys.executable, str(ROOT / "benchmarks" / "model_program.py"), f"--recipe=configs/ade20k.py:{recipe}"]
    command += [f"--program={program}", f"--side={SIDE.value}", f"--dtype={DTYPE.value}", f"--folder={FOLDER.value}"]
    command += ["--compile_only"] if compile_only else []
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    what = f"{'compile' if compile_only else 'measure'} {recipe} {program}"
    try:
        # Several processes share a GPU while they compile, and none may take all of its memory.
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | memory, capture_output=True, text=True, timeout=LIMIT.value
        )
    except subprocess.TimeoutExpired:
        print(f"{what}: not done after {LIMIT.value:.0f} s", flush=True)
        return None
    seconds = time.monotonic() - begin
    if done.returncode:
        log = Path(FOLDER.value, re.sub(r"\W", "_", what) + ".log")
        log.write_text(done.stdout + done.stderr, "utf-8")
        last = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        print(f"{what}: failed after {seconds:.0f} s: {last[:300]} ({log})", flush=True)
        return None
    line = done.stdout.strip().splitlines()[-1]
    print(f"{what}, {seconds:.0f} s: {line}", flush=True)
    return json.loads(line)


def main(_: list[str]) -> None:
    """Compile what is missing, then measure what is compiled."""
    begin, forever = time.monotonic(), float("inf")
    until = begin + (DEADLINE.value or forever)
    folder, figures = Path(FOLDER.value), Figures(Path(OUTPUT.value))
    if COUNT.value:
        return count(figures)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [entry for entry in programs() if not figures.has(*entry)]

    outcomes: list[bool] = []

    def compile_one(entry: tuple[str, str]) -> None:
        if len(outcomes) >= 3 and not any(outcomes):
            return  # it cannot work here
        outcomes.append(work(*entry, True, compile_until) is not None)

    def is_compiled(recipe: str, program: str) -> bool:
        pattern = f"configs_ade20k_py_{recipe}-{program}-{SIDE.value}-{DTYPE.value}.program"
        return (folder / pattern).exists()

    compile_until = min(until, begin + (COMPILE.value or forever))
    with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        missing = [entry for entry in wanted if not is_compiled(*entry)]
        list(pool.map(compile_one, missing))
    print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)
    if COMPILE_ONLY.value:
        return

    def measure(entry: tuple[str, str]) -> None:
        if result := work(*entry, False, until):
            figures.add(*entry, result)

    with concurrent.futures.ThreadPoolExecutor(READY.value) as pool:
        list(pool.map(measure, filter(lambda entry: is_compiled(*entry), wanted)))
    left = [" ".join(entry) for entry in wanted if not figures.has(*entry)]
    print(f"done after {time.monotonic() - begin:.0f} s; not measured: {', '.join(left) or 'nothing'}", flush=True)
    sys.exit(bool(left))


if __name__ == "__main__":
    app.run(main)
