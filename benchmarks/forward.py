"""Time of the jitted forward pass, against what the machine's matrix product would allow.

    python benchmarks/forward.py --config configs/ade20k.py:r50 --size 512x512 --batch 1

Prints a table and writes JSON with --output. The weights are random; their values do not change the time.
"""

import json
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from fasseg_jax.model import build_model

CONFIG = config_flags.DEFINE_config_file("config", "configs/ade20k.py:r50", "The model.")
SIZE = flags.DEFINE_string("size", "512x512", "Height x width of the images, multiples of 32.")
BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed runs.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def seconds(function, *arguments) -> list[float]:
    """Times of `REPEATS` runs after one that is not timed."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return times


def matmul_flops() -> float:
    """Floating-point operations per second of a large float32 matrix product, the best of the runs."""
    n = 2048
    x = jnp.ones((n, n), jnp.float32)
    return 2 * n**3 / min(seconds(jax.jit(lambda x: jnp.matmul(x, x, precision="highest")), x))


def main(_):
    """Measures and reports."""
    height, width = map(int, SIZE.value.split("x"))
    model = build_model(CONFIG.value.model)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH.value, height, width, 3)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1])
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: jnp.asarray(0.05 * rng.standard_normal(s.shape), s.dtype), shapes)

    start = time.perf_counter()
    forward = jax.jit(model.apply).lower(variables, images).compile()
    compile_seconds = time.perf_counter() - start
    times = seconds(forward, variables, images)
    flops = forward.cost_analysis()["flops"]
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "config": str(flags.FLAGS["config"].config_filename),
        "images": list(images.shape),
        "compile_s": compile_seconds,
        "median_s": float(np.median(times)),
        "min_s": min(times),
        "max_s": max(times),
        "gflop": flops / 1e9,
        "gflop_per_s": flops / np.median(times) / 1e9,
        "matmul_gflop_per_s": matmul_flops() / 1e9,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    table = Table("measure", "value", title="Forward pass")
    for name, value in result.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if OUTPUT.value:
        with open(OUTPUT.value, "w") as file:
            json.dump(result, file, indent=2)


if __name__ == "__main__":
    app.run(main)
