"""What `tpu_compile.py` leaves out of a training step's time: gathers, scatters and sorts, by the compiler's schedules.

    pip install libtpu
    python benchmarks/tpu_left_out.py --config configs/ade20k.py:r50 --topology v5e:2x2

The compiler notes no estimate at these operations. This compiles the large ones of the loss by themselves, and counts
the cycles of their final schedules. Waits for memory are left out. Nothing runs.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tpu_schedules import CYCLES_PER_MS, arrays, looped_cycles, schedules

# isort: split
import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.losses.mask_loss import PAIRS_AT_ONCE
from fasseg_jax.losses.points import point_counts

CONFIG = DEFINE_config_file("config", "configs/ade20k.py:r50", "The recipe; one image of its size.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "A pod slice, by the TPU library's name.")
TARGETS = flags.DEFINE_integer("targets", 16, "Classes in each image.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def gather(values, indices):
    """Rows of a matrix, or numbers."""
    return values.at[indices].get(mode="promise_in_bounds")


def scatter(values, indices, rows):
    """The derivative of `gather`."""
    return values.at[indices].add(rows, mode="promise_in_bounds")


def sort(magnitudes, *others):
    """The most uncertain samples by a stable sort, as the loss chose them on a TPU before they moved side by side."""
    return jax.lax.sort((magnitudes, *others), num_keys=1, is_stable=True)


def operations(config: ConfigDict) -> dict[str, tuple[Callable, list[tuple], int]]:
    """By name: a function, the types and shapes of its arguments, and how often a step for one image calls it."""
    predictions = config.model.decoder.num_layers + 1
    turns = predictions * -(-TARGETS.value // PAIRS_AT_ONCE["tpu"])
    counts, (height, width) = point_counts(config.loss), config.augmentation.crop
    pixels, matching = height * width // 16, config.loss.num_points
    of_loss = counts.oversampled + counts.uniform
    queries, channels = config.model.decoder.num_queries, config.model.hidden_dim
    mask_rows, feature_rows = (jnp.float32, pixels, queries), (jnp.float32, pixels, channels)
    samples = (jnp.float32, PAIRS_AT_ONCE["tpu"], counts.oversampled)
    words = (jnp.uint32, (height + 1) * (width + 1))
    at_matching, at_loss = (jnp.int32, matching), (jnp.int32, of_loss)
    return {
        "mask logits for matching": (gather, [mask_rows, at_matching], 4 * predictions),
        "labels for matching": (gather, [words, at_matching], predictions),
        "sort of uncertain points (before)": (sort, [samples] * 4, turns),
        "shared points: features for matching": (gather, [feature_rows, at_matching], 4),
        "shared points: features for the loss": (gather, [feature_rows, at_loss], 4),
        "shared points: their gradient": (scatter, [feature_rows, at_loss, (jnp.float32, of_loss, channels)], 4),
        "shared points: labels": (gather, [words, at_loss], 1),
    }


def compile_operation(function: Callable, arguments: list[tuple], topology: str) -> None:
    """Compile it for one chip."""
    array = arrays(topology)
    jax.jit(function).lower(*[array(dtype, *shape) for dtype, *shape in arguments]).compile()


def main(_):
    """Compile and report."""
    config, rows = CONFIG.value, {}
    per_ms = CYCLES_PER_MS[TOPOLOGY.value.partition(":")[0]]
    table = Table("operation", "cycles", "times a step", "ms a step", title="One image a chip")
    for name, (function, arguments, times) in operations(config).items():
        with schedules(compile_operation, function, arguments, TOPOLOGY.value) as folder:
            cycles = looped_cycles(folder)
        rows[name] = {"cycles": cycles, "times": times, "ms": cycles * times / per_ms}
        table.add_row(name, f"{cycles:,.0f}", str(times), f"{rows[name]['ms']:.2f}")
    Console().print(table)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    app.run(main)
