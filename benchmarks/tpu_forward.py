"""Compile the forward pass for a TPU chip, without a TPU, and report what share of its time is deformable sampling.

    pip install libtpu
    python benchmarks/tpu_forward.py --config configs/ade20k.py:r50 --size 512x512 --batch 1 --method tpu

The time is the sum of the compiler's estimates, see `tpu_cycles.py`. --offsets gives standard deviations of the
samples' distance from their queries, in pixels of each level; 0 stands for the offsets that training starts from.
Nothing runs.
"""

import json
from pathlib import Path

from tpu_cycles import SAMPLING, Kernels, program_cycles
from tpu_schedules import CYCLES_PER_MS

# isort: split
import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.models.fasseg import build_model, initial_variables

CONFIG = DEFINE_config_file("config", "configs/ade20k.py:r50", "The model.")
SIZE = flags.DEFINE_string("size", "512x512", "Height x width of the images, multiples of 32.")
BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")
METHOD = flags.DEFINE_enum("method", "tpu", ["tpu", "gather"], "How deformable attention samples.")
OFFSETS = flags.DEFINE_list("offsets", "0,2,4,8", "Standard deviations of the offsets, in pixels.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "Compile for its chips; the TPU library's name.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def main(_):
    """Compile and report."""
    config = CONFIG.value.model
    config.deformable_attention = METHOD.value
    height, width = map(int, SIZE.value.split("x"))
    kernels = Kernels(config, (height, width), TOPOLOGY.value)
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY.value).devices[0]

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device))

    model = build_model(config)
    variables = jax.tree.map(place, jax.eval_shape(lambda: initial_variables(model, 0)))
    images = place(jax.ShapeDtypeStruct((BATCH.value, height, width, 3), jnp.float32))
    cycles = program_cycles(jax.jit(model.apply).lower(variables, images).compile().as_text())

    runs = cycles.kernels[SAMPLING]
    per_ms = CYCLES_PER_MS[TOPOLOGY.value.partition(":")[0]]
    result = {
        "config": flags.FLAGS["config"].config_filename,
        "dtype": config.dtype,
        "size": SIZE.value,
        "batch": BATCH.value,
        "method": METHOD.value,
        "chip": TOPOLOGY.value,
        "rest_ms": (cycles.everything - cycles.sampling) / per_ms,
        "by_offset": {},
    }
    table = Table(
        "offsets, pixels", "sampling, ms", "forward, ms", "share", title=f"{result['config']}, {config.dtype}"
    )
    for offset in OFFSETS.value if runs else ["any"]:
        inside = runs * BATCH.value * kernels.cycles(SAMPLING, float(offset)) if runs else 0
        ms, forward_ms = (cycles.sampling + inside) / per_ms, (cycles.everything + inside) / per_ms
        result["by_offset"][offset] = {"sampling_ms": ms, "forward_ms": forward_ms, "share": ms / forward_ms}
        table.add_row("1 to 4" if offset == "0" else offset, f"{ms:.2f}", f"{forward_ms:.2f}", f"{ms / forward_ms:.0%}")
    Console().print(table)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
