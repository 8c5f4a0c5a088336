"""Compiles the forward pass for a TPU chip, without a TPU, and reports the share of deformable attention in its time.

    pip install libtpu
    python benchmarks/tpu_forward.py --config configs/ade20k.py:r50 --size 512x512 --batch 1 --method dense

The time is the compiler's: of each operation the cycles that it writes beside it, of a loop those of its body times its
count. A kernel has none; its cycles are counted in its final schedule, which the compiler writes on request: those
outside its loops for every tile of queries, and those of a loop for every further chunk that it visits. How many it
visits depends on how far samples lie from their queries: --offsets gives standard deviations in pixels of each level,
0 the offsets that training starts from (1 to 4 pixels). Nothing is run.
"""

import collections
import itertools
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else the TPU library looks for a machine that is not there
os.environ["TPU_FORWARD_SCHEDULES"] = tempfile.mkdtemp()
os.environ["LIBTPU_INIT_ARGS"] = (
    f"--xla_jf_dump_to={os.environ['TPU_FORWARD_SCHEDULES']} --xla_jf_dump_llo_text=true"
    " --xla_jf_dump_llo_pass_label_regex=final_bundles"
)

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from fasseg_jax.deformable_attention import compass_bias, reference_points
from fasseg_jax.deformable_attention_dense import chunk_bounds
from fasseg_jax.model import build_model, initial_variables

CONFIG = config_flags.DEFINE_config_file("config", "configs/ade20k.py:r50", "The model.")
SIZE = flags.DEFINE_string("size", "512x512", "Height x width of the images, multiples of 32.")
BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")
METHOD = flags.DEFINE_enum("method", "dense", ["dense", "gather"], "How deformable attention samples.")
OFFSETS = flags.DEFINE_list("offsets", "0,2,4,8", "Spreads of the offsets, in pixels of each level.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Whose chips to compile for, as the TPU library names it.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

SCHEDULES = Path(os.environ["TPU_FORWARD_SCHEDULES"])
CYCLES_PER_MS = {"v5e": 1.5e6}  # 197 TFLOP/s of four matrix units of 128 x 128
MATRIX_UNIT_LATENCY = 125  # cycles from a product to its result, in the compiler's own critical paths
SAMPLING = "deformable_sample"  # in the names of all operations of it


def operation_cycles(program: str) -> tuple[float, float, int]:
    """Cycles of all operations and of the sampling alone, kernels apart, and how many kernels it has."""
    computations = {}
    for block in re.split(r"\n(?=%|ENTRY)", program):
        header = re.match(r"(ENTRY )?%?([\w.-]+)", block)
        computations["ENTRY" if header[1] else header[2]] = block.splitlines()[1:]

    def count(computation: str) -> np.ndarray:
        total = np.zeros(3)
        for line in computations[computation]:
            sampling = bool(re.search(rf'op_name="[^"]*{SAMPLING}', line))
            if loop := re.search(r" while\(.*body=%?([\w.-]+)", line):
                times = int(re.search(r'known_trip_count":{"n":"(\d+)"', line)[1])
                all_cycles, sampling_cycles, kernels = count(loop[1])
                total += times * np.array([all_cycles, all_cycles if sampling else sampling_cycles, kernels])
            elif cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
                total += int(cycles[1]) * np.array([1, sampling, 0])
            elif 'custom_call_target="tpu_custom_call"' in line and sampling:
                total += (0, 0, 1)
        return total

    all_cycles, sampling_cycles, kernels = count("ENTRY")
    return all_cycles, sampling_cycles, int(kernels)


def schedule(name: str) -> tuple[float, list[float]]:
    """Cycles of a kernel for a tile: outside its loops, and of an iteration of each loop.

    The compiler's final schedule has a bundle of instructions a cycle, and is itself without the waits for results of
    the matrix unit; these are added.
    """
    (file,) = (path for path in SCHEDULES.glob(f"*{name}*final_bundles.txt") if "analysis" not in path.name)
    bundles = re.findall(r"^\s*(?:0x)?[0-9a-f]+\s+[A-Z ]*:\s*(>*) \{(.*)", file.read_text(), re.MULTILINE)
    regions = [(depth == ">>", [text for _, text in run]) for depth, run in itertools.groupby(bundles, lambda x: x[0])]
    # Behind the branch at a loop's end follow some more bundles of it.
    merged = [regions[0]]
    for inside, run in regions[1:]:
        if merged[-1][0] and (inside or len(run) < 8):
            merged[-1][1].extend(run)
        else:
            merged.append((inside, run))
    outside = sum(cycles(run) for inside, run in merged if not inside)
    return outside, [cycles(run) for inside, run in merged if inside]


def cycles(bundles: list[str]) -> float:
    """Of bundles one after the other, with waits for the matrix units, each a queue."""
    pops, products = (
        sum(len(re.findall(what, bundle)) for bundle in bundles) for what in (r"vpop\.f32\.mrf", r"vmatmul")
    )
    time, ready = 0, collections.defaultdict(list)
    for bundle in bundles:
        for unit in re.findall(r"vpop\.f32\.mrf\.mxu(\d)", bundle):
            if ready[unit]:
                time = max(time, ready[unit].pop(0))
        for unit in re.findall(r"vmatmul\S*\.mxu(\d)", bundle):
            ready[unit] += [time + MATRIX_UNIT_LATENCY] * round(pops / products)
        time += 1
    return time


def kernel_cycles(config, shapes, offset: float) -> float:
    """Of one layer and image."""
    heads, points, levels = config.num_heads, config.pixel_decoder.num_points, len(shapes)
    centres = reference_points(shapes)[:, None, None, None]  # (N, 1, 1, 1, 2)
    if offset:
        pixels = np.random.default_rng(0).normal(0, offset, (len(centres), heads, levels, points, 2))
    else:
        pixels = compass_bias(heads, levels, points)(None, (heads, levels, points, 2))
    locations = centres + pixels / np.array([(w, h) for h, w in shapes])[:, None]
    bounds = np.asarray(chunk_bounds(jnp.asarray(locations, jnp.float32)[None], shapes))  # (1, M, 2 * levels, tiles)
    repeats = (bounds[:, :, 1::2] - bounds[:, :, ::2]).sum(axis=(0, 1, 3))  # of each level's loop
    outside, loops = schedule(SAMPLING)
    if len(loops) != levels:
        raise RuntimeError(f"the kernel's schedule has {len(loops)} loops, not one for each of {levels} levels")
    return outside * bounds.shape[1] * bounds.shape[3] + float(repeats @ loops)


def main(_):
    """Compiles and reports."""
    config = CONFIG.value.model
    config.deformable_attention = METHOD.value
    height, width = map(int, SIZE.value.split("x"))
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value).devices[0]
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device))
    model = build_model(config)
    variables = jax.tree.map(place, jax.eval_shape(lambda: initial_variables(model, 0)))
    images = place(jax.ShapeDtypeStruct((BATCH.value, height, width, 3), jnp.float32))
    compiled = jax.jit(model.apply).lower(variables, images).compile()
    everything, sampling, kernels = operation_cycles(compiled.as_text())

    shapes = tuple((height // stride, width // stride) for stride in (32, 16, 8))
    per_ms = CYCLES_PER_MS[TOPOLOGY.value.partition(":")[0]]
    result = {
        "config": flags.FLAGS["config"].config_filename,
        "dtype": config.dtype,
        "size": SIZE.value,
        "batch": BATCH.value,
        "method": METHOD.value,
        "chip": TOPOLOGY.value,
        "rest_ms": (everything - sampling) / per_ms,
        "by_offset": {},
    }
    table = Table(
        "offsets, pixels", "sampling, ms", "forward, ms", "share", title=f"{result['config']}, {config.dtype}"
    )
    for offset in OFFSETS.value if kernels else ["any"]:
        inside = kernels * BATCH.value * kernel_cycles(config, shapes, float(offset)) if kernels else 0
        ms, forward_ms = (sampling + inside) / per_ms, (everything + inside) / per_ms
        result["by_offset"][offset] = {"sampling_ms": ms, "forward_ms": forward_ms, "share": ms / forward_ms}
        table.add_row("1 to 4" if offset == "0" else offset, f"{ms:.2f}", f"{forward_ms:.2f}", f"{ms / forward_ms:.0%}")
    Console().print(table)
    shutil.rmtree(SCHEDULES)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
