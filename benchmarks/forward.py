"""Time and memory of the forward pass, beside Hugging Face's Mask2Former in PyTorch on the same machine.

    pip install -e ".[benchmarks]"
    python benchmarks/forward.py --batches 1,8 --output forward.json

A contender is a configuration of this package (`configs/ade20k.py:r50`), `huggingface` or `huggingface-compiled`. The
last two are the Mask2Former of `transformers` with Swin-T, which is the network of
`configs/ade20k.py:mask2former_swin_t`, run eagerly or through `torch.compile`. Weights are random, which does not
change the time. Each contender has a process of its own. They run in turn, round after round, so that other load on the
machine slows all of them alike.
"""

import ctypes
import dataclasses
import json
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from rich.console import Console
from rich.table import Table

CONTENDERS = flags.DEFINE_list(
    "contenders",
    "configs/ade20k.py:mask2former_swin_t,huggingface,huggingface-compiled,configs/ade20k.py:r50",
    "Configurations, `huggingface`, `huggingface-compiled`.",
)
SIZE = flags.DEFINE_string("size", "512x512", "Height x width of the images, multiples of 32.")
BATCHES = flags.DEFINE_list("batches", "1", "Numbers of images at once, for instance 1,8,32.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the computation.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed runs of each contender.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


@dataclasses.dataclass(frozen=True)
class Task:
    """What to measure."""

    contender: str
    images: tuple[int, int, int, int]  # (B, H, W, 3)
    dtype: str


@dataclasses.dataclass(frozen=True)
class Ready:
    """A contender that can run: `run()` is one forward pass, `matmul()` one matmul of 2048 x 2048 matrices."""

    run: Callable[[], None]
    matmul: Callable[[], None]
    parameters: int
    flop: float | None  # of a forward pass, by the framework's count
    compile_s: float


def ours(task: Task) -> Ready:
    """The network of a configuration, jitted."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from example_batch import random_like

    from fasseg_jax import build_model, load_config
    from fasseg_jax.summary.flops import count_multiply_adds

    config = load_config(task.contender).model
    config.dtype = task.dtype
    model = build_model(config)
    images = jnp.asarray(np.random.default_rng(0).standard_normal(task.images), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images[:1, :64, :64])
    variables = jax.device_put(random_like(shapes))
    start = time.perf_counter()
    forward = jax.jit(model.apply).lower(variables, images).compile()
    compile_s = time.perf_counter() - start
    square = jnp.ones((2048, 2048), task.dtype)
    # The sums in float32: otherwise XLA multiplies bfloat16 as float32 on a CPU (`fasseg_jax/ops/matmul.py`).
    matmul = jax.jit(lambda x: jnp.matmul(x, x, precision="highest", preferred_element_type=jnp.float32))
    return Ready(
        run=lambda: jax.block_until_ready(forward(variables, images)),
        matmul=lambda: jax.block_until_ready(matmul(square)),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])),
        flop=2 * sum(count_multiply_adds(jax.make_jaxpr(model.apply)(variables, images).jaxpr).values()),
        compile_s=compile_s,
    )


def huggingface(task: Task) -> Ready:
    """Mask2Former with Swin-T, made from its configuration, without a download."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    torch.manual_seed(0)
    dtype = getattr(torch, task.dtype)
    backbone = SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"])  # its defaults are Swin-T's
    config = Mask2FormerConfig(backbone_config=backbone, num_queries=100, num_labels=150)
    model = Mask2FormerForUniversalSegmentation(config).eval().to(dtype)
    images = torch.randn(task.images[0], 3, *task.images[1:3], dtype=dtype)
    square = torch.ones(2048, 2048, dtype=dtype)
    call = torch.compile(model) if task.contender.endswith("-compiled") else model

    def run():
        with torch.inference_mode():
            call(pixel_values=images)

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(pixel_values=images)
    start = time.perf_counter()
    run()
    return Ready(
        run=run,
        matmul=lambda: torch.matmul(square, square),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flop=counter.get_total_flops(),
        compile_s=time.perf_counter() - start if call is not model else 0.0,
    )


def peak_memory_mb(reset: bool = False) -> float:
    """The most memory that this process has held since its start or the last `reset` (Linux)."""
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    if reset:
        ctypes.CDLL(None).malloc_trim(0)  # gives freed memory back, as `release_compiler_memory` does
        Path("/proc/self/clear_refs").write_text("5")
    return peak


def worker(task: Task, pipe) -> None:
    """The process of one contender: send its facts when ready, then the seconds of a run for each request."""
    ready = (huggingface if task.contender.startswith("huggingface") else ours)(task)
    ready.run()
    facts = {"parameters": ready.parameters, "flop": ready.flop, "compile_s": ready.compile_s}
    facts["peak_with_compilation_mb"] = peak_memory_mb(reset=True)
    pipe.send(facts)
    while (request := pipe.recv()) != "end":
        start = time.perf_counter()
        getattr(ready, request)()
        pipe.send((time.perf_counter() - start, peak_memory_mb()))


def measure(batch: int) -> list[dict]:
    """Figures of all contenders at one batch size; the contenders take turns."""
    height, width = map(int, SIZE.value.split("x"))
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for contender in CONTENDERS.value:
        here, there = spawn.Pipe()
        task = Task(contender, (batch, height, width, 3), DTYPE.value)
        processes.append(spawn.Process(target=worker, args=(task, there), daemon=True))
        processes[-1].start()
        there.close()  # so that this process notices when the worker dies
        pipes[contender] = here
        try:
            facts = here.recv()  # one after the other, so that they do not compete for the processor
        except EOFError:
            raise SystemExit(f"forward.py: contender {contender} failed; its error is above") from None
        pipes[contender] = (here, facts)

    def once(contender, what):
        pipe, _ = pipes[contender]
        pipe.send(what)
        return pipe.recv()

    runs = {contender: [] for contender in pipes}
    matmuls = {contender: [] for contender in pipes}
    for _ in range(ROUNDS.value):
        for contender in pipes:
            matmuls[contender].append(min(once(contender, "matmul")[0] for _ in range(3)))
            runs[contender].append(once(contender, "run"))
    results = []
    for contender, (pipe, facts) in pipes.items():
        pipe.send("end")
        times = [seconds for seconds, _ in runs[contender]]
        median = statistics.median(times)
        results.append(
            {
                "contender": contender,
                "batch": batch,
                "median_s": median,
                "min_s": min(times),
                "max_s": max(times),
                "images_per_s": batch / median,
                "peak_running_mb": runs[contender][-1][1],
                "gflop_per_s": facts["flop"] and facts["flop"] / median / 1e9,
                "matmul_gflop_per_s": 2 * 2048**3 / min(matmuls[contender]) / 1e9,
                **facts,
            }
        )
    for process in processes:
        process.join()
    return results


def show(results: list[dict]) -> None:
    """Print a table, one line for each contender and batch size; ratios are to the first Hugging Face contender."""
    title = f"Forward pass, {SIZE.value}, {DTYPE.value}, {len(os.sched_getaffinity(0))} cores"
    columns = ("contender", "batch", "median s", "min – max", "images/s", "time", "peak MB", "memory", "of matmul peak")
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == "contender" else "right", no_wrap=True)
    for result in results:
        rivals = [r for r in results if r["contender"] == "huggingface" and r["batch"] == result["batch"]]

        def ratio(key, result=result, rivals=rivals):
            return f"{result[key] / rivals[0][key]:.2f}x" if rivals else ""

        share = result["gflop_per_s"] and result["gflop_per_s"] / result["matmul_gflop_per_s"]
        table.add_row(
            result["contender"].removeprefix("configs/"),
            str(result["batch"]),
            f"{result['median_s']:.3f}",
            f"{result['min_s']:.3f} – {result['max_s']:.3f}",
            f"{result['images_per_s']:.2f}",
            ratio("median_s"),
            f"{result['peak_running_mb']:.0f}",
            ratio("peak_running_mb"),
            f"{share:.0%}" if share else "",
        )
    console = Console()
    Console(width=max(console.width, 140)).print(table)


def main(_):
    """Measure and report."""
    results = [result for batch in BATCHES.value for result in measure(int(batch))]
    show(results)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(
            json.dumps({"size": SIZE.value, "dtype": DTYPE.value, "results": results}, indent=2)
        )


if __name__ == "__main__":
    app.run(main)
