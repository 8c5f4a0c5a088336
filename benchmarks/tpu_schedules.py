"""Cycles of operations and kernels compiled for a TPU, without a TPU, from the compiler's final schedules.

Import it before jax. The compiler writes the schedules on request; each has one bundle of instructions a cycle.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise the TPU library looks for a machine that is not there

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

__all__ = ["CYCLES_PER_MS", "arrays", "cycles_by_depth", "looped_cycles", "parts_of", "schedules"]

# A v5e has one core, a v5p two that work as one device; each core has four matrix units of 128 x 128.
CYCLES_PER_MS = {"v5e": 1.5e6, "v5p": 1.75e6}
MATRIX_UNIT_LATENCY = 125  # cycles from a matmul to its result, in the compiler's critical paths
LANES_LATENCY = 150  # cycles from a reduction over lanes to its result as a scalar: a guess, which nothing confirms


@contextlib.contextmanager
def schedules(compile_them: Callable[..., None], *arguments: Any) -> Iterator[Path]:
    """A folder with the final schedules of what a function compiles in another process."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        with ProcessPoolExecutor(1, spawn, os.putenv, ("LIBTPU_INIT_ARGS", options)) as process:
            process.submit(compile_them, *arguments).result()
        yield Path(folder)


def arrays(topology: str) -> Callable[..., jax.ShapeDtypeStruct]:
    """A function that gives the type of an array on one chip."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    return lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))


def parts_of(folder: Path, name: str) -> tuple[float, list[float]]:
    """Cycles of a kernel for a tile of queries: those outside its loops, and those of an iteration of each loop.

    The compiler's final schedule has one bundle of instructions a cycle. It leaves out the waits for results of the
    matrix unit, which this adds.
    """
    bundles = _bundles(folder, name)
    regions = [(depth == ">>", [text for _, text in run]) for depth, run in itertools.groupby(bundles, lambda x: x[0])]
    # A few more bundles of a loop follow the branch at its end.
    merged = [regions[0]]
    for inside, run in regions[1:]:
        if merged[-1][0] and (inside or len(run) < 8):
            merged[-1][1].extend(run)
        else:
            merged.append((inside, run))
    outside = sum(_waited(run) for inside, run in merged if not inside)
    return outside, [_waited(run) for inside, run in merged if inside]


def cycles_by_depth(folder: Path, name: str) -> tuple[float, float, float]:
    """Cycles of a kernel for a block: outside of its loops, of a turn of its loop, and of a turn of each loop within.

    The scalar unit waits for the results of reductions over lanes, of which no two are counted side by side.
    """
    cycles = [0.0, 0.0, 0.0]
    for depth, bundle in _bundles(folder, name):
        reductions = len(re.findall(r"v\w+\.xlane\.", bundle)) - bundle.count("vpop.xlane.")
        cycles[max(len(depth) - 1, 0)] += 1 + LANES_LATENCY * reductions
    outside, of_loop, within = cycles
    return outside, of_loop, within


def looped_cycles(folder: Path) -> float:
    """The cycles of all operations whose schedules are in a folder, each loop of fixed length as often as it runs.

    The bundles of a loop end with the test of its counter against the number of its turns. Branches count as taken, and
    loops whose length the data decide as one turn.
    """
    total = 0.0
    for path in folder.glob("*-[0-9][0-9]-final_bundles.txt"):
        pending = 0
        for depth, bundle in _bundles_in(path):
            if not depth:
                total += 1
                continue
            pending += 1
            if turns := re.search(r"scmp\.\w+\.s32\.totalorder %\S+, (\d+) /\* loop exit test", bundle):
                total, pending = total + pending * int(turns[1]), 0
        total += pending
    return total


def _bundles(folder: Path, name: str) -> list[tuple[str, str]]:
    """`_bundles_in` the final schedule of a kernel."""
    is_of_kernel = re.compile(rf".*-{name}(\.\d+)?-.*final_bundles\.txt").fullmatch
    found = [path for path in folder.iterdir() if is_of_kernel(path.name) and "analysis" not in path.name]
    if not found:  # if several, the same kernel was compiled for several numbers of blocks
        raise RuntimeError(f"the compiler wrote no schedule of {name}")
    return _bundles_in(found[0])


def _bundles_in(schedule: Path) -> list[tuple[str, str]]:
    """The bundles of instructions in a file, each after one ">" for each loop around it."""
    return re.findall(r"^\s*(?:0x)?[0-9a-f]+\s+[A-Z ]*:\s*(>*) \{(.*)", schedule.read_text(), re.MULTILINE)


def _waited(bundles: list[str]) -> float:
    """Cycles of successive bundles, with the waits for the matrix units, each of which is a queue."""
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
