"""Everything to know about a GPU, in one call of some minutes: forward pass and training step, here and transformers'.

    pip install -e ".[cuda13,benchmarks]"
    python benchmarks/gpu_all.py --output gpu

Each program has a process of its own. At most `--jobs` compile at once, in the order of the groups: a training step
keeps 16 cores busy for a minute or two. Then the processes of a group take turns on the GPU, round after round, while
the others wait. With JAX_COMPILATION_CACHE_DIR a second call on the same kind of GPU compiles nothing. It prints
tables, and writes `results.json` after each group, the compiled programs, and a list of the kernels of each. What fails
or does not compile in time is named and left out. A try on a CPU:

    python benchmarks/gpu_all.py --output try --size 64 --batches 1 --training_batch 2 --subjects "R50|eager" \
        --mask2former configs/shapes.py --faseg configs/shapes.py --compile_limit_s 300 --limit_s 600
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import gzip
import json
import multiprocessing
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share the memory
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # and the cores

from gpu_subjects import Subject, serve  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

NO_TRITON_MATMULS = "--xla_gpu_enable_triton_gemm=false"  # they take long to tune
NO_CUDA_GRAPHS = "--xla_gpu_enable_command_buffer="
LOOPS_IN_CUDA_GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"


def groups(batches: list[int], training_batch: int, mask2former: str, faseg: str) -> dict[str, list[Subject]]:
    """The subjects that take turns; training steps first, because they compile longest."""
    found = {}
    training = {"work": "training", "batch": training_batch}
    found[f"training step, batch {training_batch}, bfloat16"] = [
        Subject("Mask2Former Swin-T, here", mask2former, **training),
        Subject("FASeg R50, here", faseg, **training),
        Subject("transformers, eager", "transformers", **training),
    ]
    found[f"training step, batch {training_batch}, bfloat16, other ways"] = [
        Subject("FASeg R50, here, no Triton matmuls", faseg, xla_flags=NO_TRITON_MATMULS, **training),
        Subject("FASeg R50, here, shared points", faseg, shared_points=True, **training),
        Subject("FASeg R50, here, loops in CUDA graphs", faseg, xla_flags=LOOPS_IN_CUDA_GRAPHS, **training),
        Subject("FASeg R50, here, gathers", faseg, method="gather", **training),
    ]
    found[f"training step, batch {training_batch}, float32"] = [
        Subject("Mask2Former Swin-T, here", mask2former, dtype="float32", **training),
        Subject("transformers, eager", "transformers", dtype="float32", **training),
    ]
    for batch in batches:
        forward = {"work": "forward", "batch": batch}
        own = [
            Subject("Mask2Former Swin-T, here", mask2former, **forward),
            Subject("FASeg R50, here", faseg, **forward),
            Subject("transformers, eager", "transformers", **forward),
        ]
        if batch in (min(batches), max(batches)):
            own.append(Subject("transformers, torch.compile", "transformers", compiled=True, **forward))
        if batch == min(batches):
            own.append(Subject("FASeg R50, here, no CUDA graphs", faseg, xla_flags=NO_CUDA_GRAPHS, **forward))
        if batch == max(batches):
            own.append(Subject("FASeg R50, here, no Triton matmuls", faseg, xla_flags=NO_TRITON_MATMULS, **forward))
            own.append(Subject("Mask2Former Swin-T, here, gathers", mask2former, method="gather", **forward))
        found[f"forward pass, batch {batch}, bfloat16"] = own
    largest = {"work": "forward", "batch": max(batches), "dtype": "float32"}
    found[f"forward pass, batch {max(batches)}, float32"] = [
        Subject("Mask2Former Swin-T, here", mask2former, **largest),
        Subject("transformers, eager", "transformers", **largest),
    ]
    return found


class Worker:
    """A subject's process, and what is known of it."""

    def __init__(self, group: str, subject: Subject, size: int):
        self.subject, self.rounds = subject, []
        self.result: dict[str, Any] = {"group": group} | dataclasses.asdict(subject)
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(subject, size, other), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is seen here

    def receive(self, limit_s: float) -> Any:
        """The process's answer; None if it died or is too slow, which ends it."""
        try:
            if self.pipe.poll(max(limit_s, 0)):
                return self.pipe.recv()
            self.result["failure"] = "too slow"
        except EOFError:
            self.result["failure"] = "its process ended; its error is above"
        self.end()
        return None

    def ask(self, request: Any, limit_s: float) -> Any:
        """The answer to a request; None without one."""
        if not self.alive:
            return None
        self.pipe.send(request)
        return self.receive(limit_s)

    def end(self) -> None:
        """End the process, which frees its memory on the GPU."""
        self.process.kill()
        self.process.join()

    @property
    def alive(self) -> bool:
        """Whether it can still answer."""
        return "failure" not in self.result


def measure(workers: list[Worker], rounds: int, end: float) -> None:
    """Let the processes of a group take turns, and add their figures to `result`."""
    for worker in workers:
        worker.result["first_pass_s"] = worker.ask("start", end - time.monotonic())
    for _ in range(rounds):
        for worker in filter(lambda worker: worker.alive, workers):
            if (figures := worker.ask("time", end - time.monotonic())) is not None:
                worker.rounds.append(figures)
    for worker in filter(lambda worker: worker.rounds, workers):
        for name in ("latency_s", "pass_s"):
            values = [figures[name] for figures in worker.rounds]
            worker.result[name] = statistics.median(values)
            worker.result[name + "_range"] = [min(values), max(values)]
        worker.result["images_per_s"] = worker.subject.batch / worker.result["pass_s"]
        worker.result["peak_bytes"] = worker.rounds[-1]["peak_bytes"]


def kernels(folder: Path, passes: int = 3) -> list[dict[str, Any]]:
    """The kernels of a trace, the slowest first: milliseconds and launches in a pass, and what they compute."""
    from jax.profiler import ProfileData

    time_of, count, scope = collections.Counter(), collections.Counter(), {}
    for file in folder.rglob("*.xplane.pb"):
        for plane in ProfileData.from_file(str(file)).planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    time_of[event.name] += event.duration_ns
                    count[event.name] += 1
                    if event.name not in scope:
                        stats = dict(event.stats)
                        scope[event.name] = str(stats.get("tf_op") or stats.get("hlo_op") or stats.get("name") or "")
    return [
        {"kernel": name, "ms": nanoseconds / 1e6 / passes, "launches": count[name] / passes, "scope": scope[name]}
        for name, nanoseconds in time_of.most_common()
    ]


def show(results: list[dict[str, Any]], title: str) -> None:
    """One table for each group; ratios are to transformers, eager."""
    for group in dict.fromkeys(result["group"] for result in results):
        own = [result for result in results if result["group"] == group]
        eager = next((r for r in own if r["name"] == "transformers, eager" and "pass_s" in r), None)
        table = Table(title=f"{group}; {title}")
        columns = ("", "ms alone", "ms among many (range)", "of which kernels", "launches", "images/s", "ratio", "GB")
        for column in (*columns, "compile s"):
            table.add_column(column, no_wrap=True, justify="right" if column else "left")
        for result in own:
            if "pass_s" not in result:
                table.add_row(result["name"], result.get("failure", "not measured"))
                continue
            low, high = (f"{1e3 * x:.2f}" for x in result["pass_s_range"])
            table.add_row(
                result["name"],
                f"{1e3 * result['latency_s']:.2f}",
                f"{1e3 * result['pass_s']:.2f} ({low} to {high})",
                f"{1e3 * result['kernels_s']:.2f}" if "kernels_s" in result else "",
                f"{result['launches']:.0f}" if "launches" in result else "",
                f"{result['images_per_s']:.0f}",
                f"{result['pass_s'] / eager['pass_s']:.2f}" if eager else "",
                f"{result['peak_bytes'] / 1e9:.1f}",
                f"{result['compile_s']:.0f}" if "compile_s" in result else "",
            )
        Console(width=170).print(table)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", type=int, default=512, help="side of the images, a multiple of 64")
    parser.add_argument("--mask2former", default="configs/ade20k.py:mask2former_swin_t", help="the peer's network here")
    parser.add_argument("--faseg", default="configs/ade20k.py:r50", help="the network of FASeg")
    parser.add_argument("--batches", default="1,8,32", help="images at once in forward passes")
    parser.add_argument("--training_batch", type=int, default=16, help="images in a training step")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each process")
    parser.add_argument("--only", default="", help="regular expression of groups to measure")
    parser.add_argument("--subjects", default="", help="regular expression of subjects to measure")
    parser.add_argument("--jobs", type=int, default=4, help="programs that compile at once")
    parser.add_argument("--compile_limit_s", type=float, default=360, help="seconds until the measuring begins")
    parser.add_argument("--limit_s", type=float, default=540, help="seconds in all")
    args = parser.parse_args()
    begin = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    found = groups([int(batch) for batch in args.batches.split(",")], args.training_batch, args.mask2former, args.faseg)
    found = {
        group: [subject for subject in subjects if re.search(args.subjects, subject.name)]
        for group, subjects in found.items()
        if re.search(args.only, group)
    }

    def compiled(group: str, subject: Subject) -> Worker:
        worker = Worker(group, subject, args.size)
        facts = worker.receive(begin + args.compile_limit_s - time.monotonic())
        worker.result |= facts or {}
        outcome = worker.result.get("failure", "compiled")
        print(f"{time.monotonic() - begin:.0f} s: {group}, {subject.name}: {outcome}", flush=True)
        return worker

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        pending = {group: [pool.submit(compiled, group, own) for own in subjects] for group, subjects in found.items()}
        workers = {group: [future.result() for future in futures] for group, futures in pending.items()}
    everyone = [worker for own in workers.values() for worker in own]
    print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)

    title = f"{args.size}x{args.size}"
    for group, own in workers.items():
        alive = [worker for worker in own if worker.alive]
        measure(alive, args.rounds, begin + args.limit_s)
        for worker in filter(lambda worker: worker.rounds and worker.subject.recipe != "transformers", alive):
            name = re.sub(r"\W+", "_", f"{group} {worker.subject.name}")
            text = worker.ask("text", 30)
            if text:
                (args.output / f"{name}.hlo.gz").write_bytes(gzip.compress(text.encode()))
            if worker.ask(["profile", str(args.output / name)], 60) is not None:
                listed = kernels(args.output / name)
                (args.output / f"{name}.kernels.json").write_text(json.dumps(listed, indent=0))
                worker.result["launches"] = sum(kernel["launches"] for kernel in listed)
                worker.result["kernels_s"] = sum(kernel["ms"] for kernel in listed) / 1e3
        for worker in own:
            worker.end()
        print(f"{group}: done after {time.monotonic() - begin:.0f} s", flush=True)
        (args.output / "results.json").write_text(json.dumps([worker.result for worker in everyone], indent=1))
    show([worker.result for worker in everyone], title)


if __name__ == "__main__":
    main()
