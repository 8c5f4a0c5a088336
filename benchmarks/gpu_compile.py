"""Compile the forward pass or the training step for an NVIDIA GPU, without one, and report what the program does.

    pip install -e ".[cuda]"
    python benchmarks/gpu_compile.py --config configs/ade20k.py:r50 --config.model.dtype=bfloat16 --batch 16

It reports the memory on the GPU, the kernel launches, and the bytes that they read and write (see `gpu_program.py`).
The least time is that of these bytes at the GPU's bandwidth, without arithmetic. Loops whose length depends on the
data, as those over targets, count as --loop_length iterations. Nothing runs, so the compiler cannot try out its
choices; on a GPU it may take others.
"""

import dataclasses
import json
import os
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from gpu_program import program_work
from jax.experimental import topologies
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table
from train_program import lower_train_step

from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.distributed import DATA, replicated


@dataclasses.dataclass(frozen=True)
class Gpu:
    """From NVIDIA's data sheets."""

    name: str
    memory: int  # bytes
    bandwidth: float  # bytes a second


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, 3.35e12),
    "h200": Gpu("NVIDIA H200", 141 * 10**9, 4.8e12),
}
# Both are the same chip, described as the compiler's `stream_executor::GpuTargetConfigProto`.
DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  l2_cache_size: 52428800  memory_bandwidth: {bandwidth:.0f}  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}"
"""

CONFIG = DEFINE_config_file("config", "configs/ade20k.py:r50", "The recipe.")
FORWARD = flags.DEFINE_bool("forward", False, "Compile the forward pass, not the training step.")
BATCH = flags.DEFINE_integer("batch", 16, "Images at once.")
GPU = flags.DEFINE_enum("gpu", "h100", list(GPUS), "GPU to compile for.")
LOOP_LENGTH = flags.DEFINE_integer("loop_length", 2, "Iterations of loops over targets: 128 pairs each.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def lower_forward(config, devices) -> jax.stages.Lowered:
    """The network."""
    mesh = Mesh(np.array(devices), (DATA,))

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))

    model = build_model(config.model)
    variables = jax.tree.map(place, jax.eval_shape(lambda: initial_variables(model, 0)))
    images = jax.ShapeDtypeStruct((BATCH.value, *config.augmentation.crop, 3), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells the kernels for which GPU they are compiled
        return jax.jit(model.apply).lower(variables, place(images))


def main(_):
    """Compile and report."""
    config, gpu = CONFIG.value, GPUS[GPU.value]
    config.train.batch_size = BATCH.value
    if config.model.deformable_attention == "auto":
        config.model.deformable_attention = "gpu"  # what "auto" is on such a GPU
    description = DESCRIPTION.format(**dataclasses.asdict(gpu))
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=description
    )
    lower = lower_forward if FORWARD.value else lower_train_step
    begin = time.perf_counter()
    compiled = lower(config, topology.devices).compile()
    seconds = time.perf_counter() - begin

    memory, work = compiled.memory_analysis(), program_work(compiled.as_text(), LOOP_LENGTH.value)
    live = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    result = {
        "config": flags.FLAGS["config"].config_filename,
        "program": "forward pass" if FORWARD.value else "training step",
        "gpu": gpu.name,
        "dtype": config.model.dtype,
        "deformable_attention": config.model.deformable_attention,
        "batch": BATCH.value,
        "compile_s": seconds,
        "memory_gb": (live - memory.alias_size_in_bytes) / 1e9,
        "launches": work.launches,
        "read_and_written_gb": work.gigabytes,
        "least_ms": 1e12 * work.gigabytes / gpu.bandwidth,
    }
    table = Table("measure", "value", title="Compiled ahead of time")
    for name, value in result.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    parts = Table("part", "GB read and written")
    for part, gigabytes in work.by_part.most_common(12):
        parts.add_row(part, f"{gigabytes:.2f}")
    Console().print(table, parts)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result | {"by_part_gb": dict(work.by_part.most_common())}, indent=2))


if __name__ == "__main__":
    app.run(main)
