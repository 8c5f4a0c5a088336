"""Compile the training step for a TPU pod slice, without a TPU, and report what the compiler says of it.

    pip install libtpu
    python benchmarks/tpu_compile.py --config configs/ade20k.py:r50 --topology v5e:4x4
    python benchmarks/tpu_compile.py --topology v5e:2x2 --slices 2 --config.train.batch_size=8

It reports a chip's memory, the collectives in the program, and an estimate of a step's time. The compiler estimates no
whole program, so `tpu_cycles.py` adds up its estimates of the operations and the kernels' schedules, for images with
--targets classes. Communication between chips, waits for memory, gathers, scatters and sorts are left out; of the last
three it reports the sizes, and `tpu_left_out.py` the time. Nothing runs.
"""

import collections
import json
import math
import time

from tpu_cycles import Kernels, loss_kernels, program_cycles
from tpu_schedules import CYCLES_PER_MS

# isort: split
from absl import app, flags
from collectives import collectives
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table
from train_program import lower_train_step

from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.training.utilization import PEAK_FLOPS, training_flops

CONFIG = DEFINE_config_file("config", "configs/ade20k.py:r50", "The recipe; compiles its batch size.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "The pod slice, by the TPU library's name.")
SLICES = flags.DEFINE_integer("slices", 1, "Number of such slices.", lower_bound=1)
OFFSET = flags.DEFINE_float("offset", 4.0, "Standard deviation of the offsets, in pixels of each level.")
TARGETS = flags.DEFINE_integer("targets", 16, "Classes in each image.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def main(_):
    """Compile and report."""
    config = CONFIG.value
    if config.model.deformable_attention == "auto":
        config.model.deformable_attention = "tpu"  # what "auto" is on a TPU
    size, (height, width) = config.train.batch_size, config.augmentation.crop
    kernels, of_loss = (
        Kernels(config.model, (height, width), TOPOLOGY.value),
        loss_kernels(config, TOPOLOGY.value, TARGETS.value),
    )
    several = {"num_slices": SLICES.value} if SLICES.value > 1 else {}
    chips = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value, **several).devices
    begin = time.perf_counter()
    compiled = lower_train_step(config, chips).compile()
    seconds = time.perf_counter() - begin

    memory = compiled.memory_analysis()
    program = compiled.as_text()
    chips_of_slice = len(chips) // SLICES.value

    def across(collective):
        groups = collective["groups"] or [range(len(chips))]
        return any(len({chip // chips_of_slice for chip in group}) > 1 for group in groups)

    exchanges = collectives(program)
    names = [exchange["kind"] + " across slices" * across(exchange) for exchange in exchanges]
    images = size // len(chips)
    cycles = program_cycles(program, images * TARGETS.value)
    inside = sum(runs * images * kernels.cycles(name, OFFSET.value) for name, runs in cycles.kernels.items())
    in_loss = sum(blocks * of_loss[name] for name, blocks in cycles.blocks.items())
    per_ms = CYCLES_PER_MS.get(TOPOLOGY.value.partition(":")[0], math.nan)  # the clock of a v6e is not published
    total = cycles.everything + inside + in_loss
    step_ms = total / per_ms
    live = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    result = {
        "config": flags.FLAGS["config"].config_filename,
        "dtype": config.model.dtype,
        "topology": TOPOLOGY.value,
        "slices": SLICES.value,
        "chips": len(chips),
        "batch": size,
        "compile_s": seconds,
        "memory_per_chip_gb": (live - memory.alias_size_in_bytes) / 1e9,
        "of_these_temporary_gb": memory.temp_size_in_bytes / 1e9,
        "collectives": dict(collections.Counter(names)),
        "elements_across_slices": sum(exchange["elements"] for exchange in exchanges if across(exchange)),
        "estimated_cycles": total,
        "estimated_step_ms": step_ms,
        "model_flops_utilization": images * training_flops(config) / (step_ms / 1e3 * PEAK_FLOPS[chips[0].device_kind]),
        "not_estimated_gathers_and_scatters": cycles.moved,
        "not_estimated_sorted_elements": cycles.sorted,
        "of_these_deformable_sampling_ms": (cycles.sampling + inside) / per_ms,
        "of_these_kernels_of_the_loss_ms": in_loss / per_ms,
    }
    table = Table("measure", "value", title="Training step, compiled ahead of time")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if OUTPUT.value:
        with open(OUTPUT.value, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    app.run(main)
