"""Cycles of a program compiled for a TPU, without a TPU, from the compiler's estimates and schedules.

Import it before jax. The compiler notes an estimate of cycles at each operation; those of a loop's body count as often
as the loop runs. A Pallas kernel has no such note: the compiler writes its final schedule on request, in which this
counts cycles. Copies into fast memory and communication between chips are left out, and so are gathers, scatters and
sorts, which have no note: their sizes are counted instead.
"""

import collections
import dataclasses
import functools
import json
import math
import re

from tpu_schedules import arrays, cycles_by_depth, parts_of, schedules

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.losses.mask_loss import PAIRS_AT_ONCE
from fasseg_jax.losses.points import point_counts
from fasseg_jax.models.layers.deformable_attention import compass_bias, reference_points
from fasseg_jax.ops.assignment import assign
from fasseg_jax.ops.deformable import tpu
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.ops.point_sampling import pack_labels, sample_class_masks, sample_masks, sample_masks_roughly
from fasseg_jax.ops.selection import compact, uncertainty_weights
from fasseg_jax.ops.selection_tpu import AT_ONCE, BITS, LANES

__all__ = ["GRADIENTS", "SAMPLING", "Cycles", "Kernels", "loss_kernels", "program_cycles"]

SAMPLING = "deformable_sample"  # in the names of all its operations
GRADIENTS = "deformable_sample_gradients"  # the kernel of its derivative
# The names of the kernels of the loss, each with the number of results in a block.
KERNELS_OF_LOSS = r"(?:sum_of_tents_\d+x\d+|value_of_rank_\d+|compact_\d+|assign)_at_(\d+)"


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
        with schedules(_compile_kernels, config.to_json(), self._shapes, topology) as folder:
            self._schedules = {name: parts_of(folder, name) for name in (SAMPLING, GRADIENTS)}

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
    with schedules(_compile_loss_kernels, config.to_json(), topology) as folder:
        names = {match[0] for path in folder.iterdir() if (match := re.search(KERNELS_OF_LOSS, path.name))}
        parts = {name: parts_of(folder, name) for name in names if not name.startswith("assign")}
        depths = {name: cycles_by_depth(folder, name) for name in names - parts.keys()}
    turns = {name: _turns(name) for name in parts}
    cycles = {name: outside + turns[name] * sum(loops) for name, (outside, loops) in parts.items()}
    for name, (outside, of_targets, along_paths) in depths.items():
        cycles[name] = outside + targets * (of_targets + path_length * along_paths)
    return cycles


def _turns(kernel: str) -> int:
    """How often each loop of a kernel of the loss runs for a block."""
    if kernel.startswith("value_of_rank"):
        return BITS
    columns = re.match(r"compact_(\d+)", kernel)
    return int(columns[1]) // (LANES * AT_ONCE) if columns else 1


def _compile_kernels(config: str, shapes: Shapes, topology: str) -> None:
    config, array = ConfigDict(json.loads(config)), arrays(topology)
    tokens, heads = sum(h * w for h, w in shapes), config.num_heads
    values = array(config.dtype, 1, tokens, heads, config.hidden_dim // heads)
    weights = array(jnp.float32, 1, tokens, heads, len(shapes), config.pixel_decoder.num_points)
    locations = array(jnp.float32, *weights.shape, 2)
    for function, inputs in (
        (tpu.sample, (values, locations, weights)),
        (tpu.sample_gradients, (values, locations, weights, values)),
    ):
        jax.jit(functools.partial(function, shapes=shapes)).lower(*inputs).compile()


def _compile_loss_kernels(config: str, topology: str) -> None:
    config, array = ConfigDict(json.loads(config)), arrays(topology)
    pairs, (height, width) = PAIRS_AT_ONCE["tpu"], config.augmentation.crop
    masks, labels = array(jnp.float32, pairs, height // 4, width // 4), array(jnp.uint8, 1, height, width)
    image, counts = array(jnp.int32, pairs), point_counts(config.loss)
    problems = array(jnp.float32, 8, config.model.decoder.num_queries, config.data.max_targets)
    jax.jit(jax.vmap(assign)).lower(problems, array(jnp.int32, 8)).compile()
    candidates = array(jnp.float32, 16, counts.oversampled)  # two blocks, so that there is a loop over blocks
    jax.jit(functools.partial(uncertainty_weights, count=counts.important)).lower(candidates).compile()
    chosen = array(jnp.bool_, *candidates.shape)
    jax.jit(functools.partial(compact, count=counts.important)).lower(chosen, [candidates] * 3).compile()
    for count in counts:
        jax.jit(sample_masks).lower(masks, array(jnp.float32, pairs, count, 2)).compile()
    oversampled = array(jnp.float32, pairs, counts.oversampled, 2)
    jax.jit(sample_masks_roughly).lower(masks, oversampled).compile()
    points = array(jnp.float32, pairs, config.loss.num_points, 2)
    jax.jit(lambda labels, *others: sample_class_masks(pack_labels(labels), *others)).lower(
        labels, image, image, points
    ).compile()
