"""Compile one program of a recipe into a folder, or run it from there and print its time and memory.

    python benchmarks/model_program.py --recipe configs/ade20k.py:r50 --program train_8 --folder DIR --compile_only
    python benchmarks/model_program.py --recipe configs/ade20k.py:r50 --program train_8 --folder DIR

A program is forward_B, train_B or frozen_B: the forward pass, the training step, or that with a frozen backbone, of B
images. Weights are random, with offsets of deformable attention as wide as trained ones. The last line of the output is
JSON. Processes of one folder take turns on the device, so one of them can load its program while another is timed.

Loading a program runs what is in the folder: use only what was compiled there.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from example_batch import example_batch
from jax.experimental import serialize_executable
from process_memory import peak_mb, restart_peak
from train_program import lower_train_step

from fasseg_jax.config import load_config
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.summary.flops import count_multiply_adds

RECIPE = flags.DEFINE_string("recipe", "configs/ade20k.py:r50", "The recipe.")
PROGRAM = flags.DEFINE_string("program", "forward_1", "forward_B, train_B or frozen_B, of B images.")
SIDE = flags.DEFINE_integer("side", 512, "Side of the square images, a multiple of 64.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Dtype of the computation.")
RUNS = flags.DEFINE_integer("runs", 5, "Timed runs, after two that are not timed.", lower_bound=1)
FOLDER = flags.DEFINE_string("folder", None, "Folder of compiled programs.", required=True)
COMPILE_ONLY = flags.DEFINE_boolean("compile_only", False, "Compile into the folder, and do not run.")

TARGETS = 8  # classes in a training image
OFFSET = 4.0  # standard deviation of the sampling offsets in pixels, as in tpu_compile.py


def lower(recipe: str, program: str) -> tuple[jax.stages.Lowered, dict[str, Any]]:
    """The lowered program, and what its trace says: parameters and multiply-adds of one image for a forward pass."""
    config, (kind, batch) = load_config(recipe), program.split("_")
    config.model.dtype = DTYPE.value
    if kind != "forward":
        config.train.batch_size, config.augmentation.crop = int(batch), (SIDE.value, SIDE.value)
        if kind == "frozen":
            config.optimizer.backbone_multiplier = 0.0
        return lower_train_step(config, jax.devices()[:1]), {}
    model = build_model(config.model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    images = jax.ShapeDtypeStruct((int(batch), SIDE.value, SIDE.value, 3), jnp.float32)
    traced = jax.jit(model.apply).trace(variables, images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    multiply_adds = count_multiply_adds(traced.jaxpr.jaxpr).total() // int(batch)
    return traced.lower(), {"parameters": parameters, "multiply_adds": multiply_adds}


def compile_program(recipe: str, program: str) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """The compiled program, and the facts about it."""
    begin = time.perf_counter()
    lowered, facts = lower(recipe, program)
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - lowered_at
    memory = compiled.memory_analysis()
    assert memory is not None, "XLA reports the memory of a program on every platform of the project"
    live = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    first, *_ = lowered.args_info[0]  # the training state, or the network's variables
    leaves, _ = jax.tree_util.tree_flatten_with_path(first)
    facts |= {
        "lower_s": round(lowered_at - begin, 2),
        "compile_s": round(seconds, 2),
        "planned_mb": round((live - memory.alias_size_in_bytes) / 2**20),
        "variables": [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves],
        "inputs": len(jax.tree.leaves(lowered.args_info)),
        "outputs": len(jax.tree.leaves(lowered.out_info)),
    }
    return compiled, facts


def save_program(compiled: jax.stages.Compiled, facts: dict[str, Any], file: Path) -> None:
    """Write a program, and its facts beside it."""
    saved, _, _ = serialize_executable.serialize(compiled)
    file.with_suffix(".json").write_text(json.dumps(facts), "utf-8")
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(saved)
    partial.replace(file)


def program_file(recipe: str, program: str, folder: Path) -> Path:
    """Where a compiled program lies; its facts are beside it as .json."""
    return folder / (re.sub(r"\W+", "_", recipe) + f"-{program}-{SIDE.value}-{DTYPE.value}.program")


def load_program(file: Path) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """A program from `save_program`, which takes and returns its arrays one by one."""
    facts = json.loads(file.with_suffix(".json").read_text("utf-8"))
    arguments = jax.tree.structure(((0,) * facts["inputs"], {}))
    results = jax.tree.structure((0,) * facts["outputs"])
    devices = jax.devices()[:1]
    return serialize_executable.deserialize_and_load(file.read_bytes(), arguments, results, None, devices), facts


def variable(name: str, shape: list[int], dtype: str, noise: np.ndarray) -> np.ndarray:
    """A value for an array of the training state or the network, by its name."""
    if ".opt_state" in name or dtype != "float32":
        return np.zeros(shape, dtype)
    if re.search(r"'(scale|var|gamma)'", name):
        return np.ones(shape, np.float32)
    if len(shape) == 1 and "sampling_offsets" not in name:
        return np.zeros(shape, np.float32)
    deviation = OFFSET if len(shape) == 1 else 0.02
    return np.resize(noise * np.float32(deviation), math.prod(shape)).reshape(shape)


def example_inputs(program: str, max_targets: int) -> list[np.ndarray]:
    """The inputs of a program after its variables: images, and for training labels and classes."""
    kind, batch = program.split("_")
    if kind == "forward":
        rng = np.random.default_rng(0)
        return [rng.standard_normal((int(batch), SIDE.value, SIDE.value, 3), np.float32)]
    images, labels, classes = example_batch(SIDE.value, int(batch), min(TARGETS, (SIDE.value // 32) ** 2))
    padding = np.full((len(images), max_targets - classes.shape[1]), -1, np.int32)
    return [images, labels, np.concatenate([classes, padding], axis=1)]


def machine_name(device: jax.Device) -> str:
    """What computes, in words: one NVIDIA H100, 2 cores of an AMD EPYC."""
    if device.platform != "cpu":
        return f"one {device.device_kind}"
    information = Path("/proc/cpuinfo")
    found = re.search(r"(?m)^model name\s*: (.+)$", information.read_text("utf-8")) if information.exists() else None
    return f"{os.cpu_count()} cores of an {found[1] if found else 'unknown processor'}"


@contextlib.contextmanager
def turn(folder: Path):
    """Hold the device: processes of the same folder wait."""
    with (folder / "device.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def measure(recipe: str, program: str, folder: Path) -> dict[str, Any]:
    """Time and peak memory of a program, and the facts about it."""
    file = program_file(recipe, program, folder)
    if not file.exists():  # the peak would be that of compiling
        raise SystemExit(f"{file} is missing; compile the program first, with --compile_only")
    run, facts = load_program(file)
    noise = np.random.default_rng(0).standard_normal(1_000_003, np.float32)
    host = [variable(name, shape, dtype, noise) for name, shape, dtype in facts["variables"]]
    host += example_inputs(program, load_config(recipe).data.max_targets)
    carried = 0 if program.startswith("forward") else len(facts["variables"])  # the state, which a step returns
    device, seconds = jax.devices()[0], []
    with turn(folder):
        if device.platform == "cpu":
            restart_peak()
        arrays = [jnp.asarray(array) if device.platform == "cpu" else jax.device_put(array) for array in host]
        del host
        for _ in range(RUNS.value + 2):
            begin = time.perf_counter()
            results = jax.block_until_ready(run(*arrays))
            seconds.append(time.perf_counter() - begin)
            arrays[:carried] = results[:carried]
        peak = device.memory_stats()["peak_bytes_in_use"] / 2**20 if device.platform != "cpu" else peak_mb()
    if carried and not np.isfinite(loss := float(results[carried])):  # the first of the step's metrics
        raise SystemExit(f"{recipe}, {program}: the loss is {loss}")
    timed = seconds[2:]
    return {name: value for name, value in facts.items() if name not in ("variables", "inputs", "outputs")} | {
        "median_s": round(statistics.median(timed), 6),
        "min_s": round(min(timed), 6),
        "max_s": round(max(timed), 6),
        "peak_mb": round(peak),
        "device": machine_name(device),
        "jax": jax.__version__,
    }


def main(_):
    """Compile, or measure and print."""
    folder = Path(FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_compilation_cache", False)  # what came from there cannot be saved on every platform
    if COMPILE_ONLY.value:
        compiled, facts = compile_program(RECIPE.value, PROGRAM.value)
        save_program(compiled, facts, program_file(RECIPE.value, PROGRAM.value, folder))
        print(json.dumps({name: facts[name] for name in ("lower_s", "compile_s", "planned_mb")}))
    else:
        print(json.dumps(measure(RECIPE.value, PROGRAM.value, folder)))


if __name__ == "__main__":
    app.run(main)
