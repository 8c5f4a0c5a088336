"""Cycles of a program compiled for a TPU, without a TPU, from the compiler's estimates and schedules.

Import it before jax. The compiler notes an estimate of cycles at each operation; those of a loop's body count as often
as the loop runs. A Pallas kernel has no such note: the compiler writes its final schedule on request, in which this
counts cycles. Copies into fast memory and communication between chips are left out, and so are gathers, scatters and
sorts, which have no note: their sizes are counted instead.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import math
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
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from fasseg_jax.losses.mask_loss import PAIRS_AT_ONCE
from fasseg_jax.losses.points import point_counts
from fasseg_jax.models.layers.deformable_attention import compass_bias, reference_points
from fasseg_jax.ops.assignment import assign
from fasseg_jax.ops.deformable import tpu
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.ops.point_sampling import pack_labels, sample_class_masks, sample_masks
from fasseg_jax.ops.selection import uncertainty_weights
from fasseg_jax.ops.selection_tpu import BITS

__all__ = ["CYCLES_PER_MS", "GRADIENTS", "SAMPLING", "Cycles", "Kernels", "loss_kernels", "program_cycles"]

# A v5e has one core, a v5p two that work as one device; each core has four matrix units of 128 x 128.
CYCLES_PER_MS = {"v5e": 1.5e6, "v5p": 1.75e6}
MATRIX_UNIT_LATENCY = 125  # cycles from a matmul to its result, in the compiler's critical paths
LANES_LATENCY = 150  # cycles from a reduction over lanes to its result as a scalar: a guess, which nothing confirms
SAMPLING = "deformable_sample"  # in the names of all its operations
GRADIENTS = "deformable_sample_gradients"  # the kernel of its derivative
KERNELS_OF_LOSS = r"(?:sum_of_tents_\d+x\d+|value_of_rank_\d+|assign)_at_(\d+)"  # and the results of a block


@dataclasses.dataclass
class Cycles:
    """Cycles of a program without those in its kernels.

    Attributes:
      everything: the cycles of all operations.
      sampling: the cycles of the operations around the kernels of deformable sampling.
      kernels: how often each kernel of deformable sampling runs for an image, by name.
      blocks: how many blocks of results each kernel of the loss computes, by name.
      moved: slices that gathers read and scatters write one by one.
      sorted: elements in sorts.
    """

    everything: float = 0.0
    sampling: float = 0.0
    kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    blocks: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    moved: int = 0
    sorted: int = 0

    def add(self, other: "Cycles", times: int) -> None:
        """Add the cycles of a part that runs `times` times."""
        self.everything += times * other.everything
        self.sampling += times * other.sampling
        self.moved += times * other.moved
        self.sorted += times * other.sorted
        for mine, others in ((self.kernels, other.kernels), (self.blocks, other.blocks)):
            for name, count in others.items():
                mine[name] += times * count


def program_cycles(program: str, targets: int = 16, path_length: int = 2) -> Cycles:
    """The cycles of a compiled program's text.

    Args:
      program: the text.
      targets: of all images of a chip. Loops over targets say in their name how many they take in a turn.
      path_length: turns of other loops whose length depends on the data: those along the paths of the assignment.
    """

    def turns(loop: str, condition: str) -> int:
        # A loop of fixed length compares its counter with a constant.
        if bounds := re.findall(r"= s32\[\]\S* constant\((\d+)\)", condition):
            return int(bounds[0])
        named = re.search(r'op_name="[^"]*over_targets_by_(\d+)/while"', loop)
        return -(-targets // int(named[1])) if named else path_length

    computations = {}
    for block in re.split(r"\n(?=%|ENTRY)", program):
        header = re.match(r"(ENTRY )?%?([\w.-]+)", block)
        computations["ENTRY" if header[1] else header[2]] = block.splitlines()[1:]

    def count(computation: str) -> Cycles:
        total = Cycles()
        shapes = {}
        for line in computations[computation]:
            if result := re.match(r"\s*(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\]", line):
                shapes[result[1]] = [int(n) for n in result[2].split(",") if n]
            sampling = bool(re.search(rf'op_name="[^"]*{SAMPLING}', line))
            if loop := re.search(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)", line):
                total.add(count(loop[2]), turns(line, "\n".join(computations[loop[1]])))
            elif branches := re.search(r" conditional\(.*branch_computations=\{([^}]*)\}", line):
                parts = [count(name.strip(" %")) for name in branches[1].split(",")]
                total.add(max(parts, key=lambda part: part.everything), 1)
            elif cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
                total.add(Cycles(int(cycles[1]), int(cycles[1]) * sampling), 1)
            elif gather := re.search(r" gather\(.*slice_sizes=\{([\d,]+)\}", line):
                total.moved += math.prod(shapes[result[1]]) // math.prod(map(int, gather[1].split(",")))
            elif scatter := re.search(r" scatter\(%?[\w.-]+, %?([\w.-]+),.*index_vector_dim=(\d+)", line):
                indices = shapes[scatter[1]]
                total.moved += math.prod(indices[: int(scatter[2])])
            elif " sort(" in line:
                total.sorted += math.prod(shapes[result[1]])
            elif fused := re.search(r" fusion\(.*calls=%?([\w.-]+)", line):
                total.add(count(fused[1]), 1)
            elif 'custom_call_target="tpu_custom_call"' in line and sampling:
                total.kernels[GRADIENTS if GRADIENTS in line else SAMPLING] += 1
            elif 'custom_call_target="tpu_custom_call"' in line and (kernel := re.search(KERNELS_OF_LOSS, line)):
                total.blocks[kernel[0]] += math.prod(shapes[result[1]]) // int(kernel[1])
        return total

    return count("ENTRY")


class Kernels:
    """The kernels of deformable sampling, compiled for one image. Their cycles depend on the sampled locations."""

    def __init__(self, config: ConfigDict, size: tuple[int, int], topology: str):
        """Compile them for `config.model` and images of `size`, in another process.

        Call this before this process uses the TPU library, which only one process can do at a time.
        """
        self._config, self._shapes = config, tuple((size[0] // s, size[1] // s) for s in (32, 16, 8))
        with _schedules(_compile_kernels, config.to_json(), self._shapes, topology) as folder:
            self._schedules = {name: _schedule(folder, name) for name in (SAMPLING, GRADIENTS)}

    def cycles(self, name: str, offset: float) -> float:
        """The cycles of a kernel for one layer and image.

        A kernel visits the more chunks of a level, the farther samples lie from their queries: `offset` is the standard
        deviation in pixels of each level; 0 stands for the offsets that training starts from (1 to 4 pixels).
        """
        config, shapes = self._config, self._shapes
        heads, points, levels = config.num_heads, config.pixel_decoder.num_points, len(shapes)
        centers = reference_points(shapes)[:, None, None, None]  # (N, 1, 1, 1, 2)
        if offset:
            pixels = np.random.default_rng(0).normal(0, offset, (len(centers), heads, levels, points, 2))
        else:
            pixels = compass_bias(heads, levels, points)(None, (heads, levels, points, 2))
        locations = centers + pixels / np.array([(w, h) for h, w in shapes])[:, None]
        bounds = np.asarray(tpu.chunk_bounds(jnp.asarray(locations, jnp.float32)[None], shapes))
        first, last = bounds[:, :, ::2], bounds[:, :, 1::2]  # (1, M, levels, tiles)
        # The forward kernel forms a level's first chunk before the loop over the others.
        repeats = (last - first + (name == GRADIENTS)).sum(axis=(0, 1, 3))  # iterations of each level's loop
        outside, loops = self._schedules[name]
        if len(loops) != levels:
            raise RuntimeError(f"the schedule of {name} has {len(loops)} loops, not one for each of {levels} levels")
        return outside * bounds.shape[1] * bounds.shape[3] + float(repeats @ loops)


def loss_kernels(config: ConfigDict, topology: str, targets: int, path_length: int = 2) -> dict[str, float]:
    """The cycles of a block of results in each kernel of the loss, by the kernel's name, for training by `config`.

    Call this, too, before this process uses the TPU library. `targets` are those of an image; `path_length` as for
    `program_cycles`.
    """
    with _schedules(_compile_loss_kernels, config.to_json(), topology) as folder:
        names = {match[0] for path in folder.iterdir() if (match := re.search(KERNELS_OF_LOSS, path.name))}
        parts = {name: _schedule(folder, name) for name in names if not name.startswith("assign")}
        depths = {name: _cycles_by_depth(folder, name) for name in names - parts.keys()}
    turns = {name: BITS if name.startswith("value_of_rank") else 1 for name in parts}
    cycles = {name: outside + turns[name] * sum(loops) for name, (outside, loops) in parts.items()}
    for name, (outside, of_targets, along_paths) in depths.items():
        cycles[name] = outside + targets * (of_targets + path_length * along_paths)
    return cycles


@contextlib.contextmanager
def _schedules(compile_them: Callable[..., None], *arguments: Any) -> Iterator[Path]:
    """A folder with the final schedules of what a function compiles in another process."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        options = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        )
        with ProcessPoolExecutor(1, spawn, os.putenv, ("LIBTPU_INIT_ARGS", options)) as process:
            process.submit(compile_them, *arguments).result()
        yield Path(folder)


def _arrays(topology: str) -> Callable[..., jax.ShapeDtypeStruct]:
    """A function that gives the type of an array on one chip."""
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    return lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))


def _compile_kernels(config: str, shapes: Shapes, topology: str) -> None:
    config, array = ConfigDict(json.loads(config)), _arrays(topology)
    tokens, heads = sum(h * w for h, w in shapes), config.num_heads
    values = array(config.dtype, 1, tokens, heads, config.hidden_dim // heads)
    weights = array(jnp.float32, 1, tokens, heads, len(shapes), config.pixel_decoder.num_points)
    locations = array(jnp.float32, *weights.shape, 2)
    for function, arrays in (
        (tpu.sample, (values, locations, weights)),
        (tpu.sample_gradients, (values, locations, weights, values)),
    ):
        jax.jit(functools.partial(function, shapes=shapes)).lower(*arrays).compile()


def _compile_loss_kernels(config: str, topology: str) -> None:
    config, array = ConfigDict(json.loads(config)), _arrays(topology)
    pairs, (height, width) = PAIRS_AT_ONCE["tpu"], config.augmentation.crop
    masks, labels = array(jnp.float32, pairs, height // 4, width // 4), array(jnp.uint8, 1, height, width)
    image, counts = array(jnp.int32, pairs), point_counts(config.loss)
    problems = array(jnp.float32, 8, config.model.decoder.num_queries, config.data.max_targets)
    jax.jit(jax.vmap(assign)).lower(problems, array(jnp.int32, 8)).compile()
    candidates = array(jnp.float32, 16, counts.oversampled)  # two blocks, so that there is a loop over blocks
    jax.jit(functools.partial(uncertainty_weights, count=counts.important)).lower(candidates).compile()
    for count in (counts.oversampled, counts.uniform):
        jax.jit(sample_masks).lower(masks, array(jnp.float32, pairs, count, 2)).compile()
    points = array(jnp.float32, pairs, config.loss.num_points, 2)
    jax.jit(lambda labels, *others: sample_class_masks(pack_labels(labels), *others)).lower(
        labels, image, image, points
    ).compile()


def _schedule(folder: Path, name: str) -> tuple[float, list[float]]:
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


def _cycles_by_depth(folder: Path, name: str) -> tuple[float, float, float]:
    """Cycles of a kernel for a block: outside of its loops, of a turn of its loop, and of a turn of each loop within.

    The scalar unit waits for the results of reductions over lanes, of which no two are counted side by side.
    """
    cycles = [0.0, 0.0, 0.0]
    for depth, bundle in _bundles(folder, name):
        reductions = len(re.findall(r"v\w+\.xlane\.", bundle)) - bundle.count("vpop.xlane.")
        cycles[max(len(depth) - 1, 0)] += 1 + LANES_LATENCY * reductions
    outside, of_loop, within = cycles
    return outside, of_loop, within


def _bundles(folder: Path, name: str) -> list[tuple[str, str]]:
    """The bundles of instructions of a kernel's final schedule, each after one ">" for each loop around it."""
    is_of_kernel = re.compile(rf".*-{name}(\.\d+)?-.*final_bundles\.txt").fullmatch
    found = [path for path in folder.iterdir() if is_of_kernel(path.name) and "analysis" not in path.name]
    if not found:  # if several, the same kernel was compiled for several numbers of blocks
        raise RuntimeError(f"the compiler wrote no schedule of {name}")
    return re.findall(r"^\s*(?:0x)?[0-9a-f]+\s+[A-Z ]*:\s*(>*) \{(.*)", found[0].read_text(), re.MULTILINE)


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
