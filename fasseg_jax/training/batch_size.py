"""Finds the largest batch whose training step fits the devices' memory (`--config.train.batch_size=auto`)."""

import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fasseg_jax.losses.targets import Targets
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.runtime.compilation import release_compiler_memory
from fasseg_jax.runtime.distributed import all_gather_objects, shape_dtype_structs, shard_batch, state_shardings
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.garbage import paused_garbage_collection
from fasseg_jax.training.optimizer import make_optimizer
from fasseg_jax.training.train_step import TrainState, make_train_step
from fasseg_jax.weights.checkpoint_metadata import complete_steps, load_metadata

__all__ = ["batch_size_of_run", "batch_sizes", "fit_batch_size", "usable_memory"]

USABLE_BY_DEVICE = 0.95  # share of what the allocator of a GPU or TPU may take; some is lost to fragments
USABLE_BY_CPU = 0.8  # share of the free memory of a computer; the rest is for the system and for data


def fit_batch_size(config: ConfigDict, mesh: Mesh, max_targets: int, say: Callable[[str], None]) -> int:
    """Halve `config.train.batch_size` until a step fits. All hosts must call it.

    Each size is compiled, and what XLA says of its memory is compared with the device's. On a single host, one real
    step on black images follows: memory may be in use, or in fragments.

    Args:
      config: the whole configuration.
      mesh: of `make_mesh`.
      max_targets: T, targets in an image.
      say: prints a line.

    Raises:
      ValueError: not even the smallest batch that the devices can share fits.
    """
    limit = usable_memory(mesh)
    needed = 0
    for size in batch_sizes(config.train.batch_size, mesh.size * config.train.accumulation):
        say(f"Trying a batch of {size}: compiling the training step for it.")
        needed, runs = _try(config, mesh, size, max_targets, limit)
        if all(all_gather_objects(bool(runs))):
            say(f"Batch size {size}: a step needs {needed / 1e9:.1f} of {limit / 1e9:.1f} GB on each device.")
            return size
    raise ValueError(
        f"config.train.batch_size=auto: not even a batch of {size} fits: it needs {needed / 1e9:.1f} GB on each "
        f"device, which has {limit / 1e9:.1f} GB to spare. A smaller config.augmentation.crop, "
        "config.model.remat=True or config.model.dtype=bfloat16 need less"
    )


def batch_size_of_run(workdir: Path) -> int | None:
    """The batch size of the run in `workdir`; None if it has no checkpoint yet."""
    folder = workdir / "checkpoints"
    steps = complete_steps(folder) if folder.is_dir() else []
    return load_metadata(folder / str(steps[-1])).config.train.batch_size if steps else None


def batch_sizes(largest: int, parts: int) -> Iterator[int]:
    """Yield `largest` and its halves, each rounded down to a multiple of `parts`, and at last `parts`."""
    size = max(largest // parts, 1)
    while size > 1:
        yield size * parts
        size //= 2
    yield parts


def usable_memory(mesh: Mesh) -> int:
    """Bytes that a step may take on each of this host's devices."""
    device = mesh.local_devices[0]
    statistics = device.memory_stats() or {}
    if limit := statistics.get("bytes_limit"):
        return int(USABLE_BY_DEVICE * (limit - statistics.get("bytes_in_use", 0)))
    return int(USABLE_BY_CPU * _free_memory() / len(mesh.local_devices))


def _free_memory() -> int:
    """Bytes that a program can still get on this computer; on Linux, caches of files count as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _try(config: ConfigDict, mesh: Mesh, size: int, max_targets: int, limit: int) -> tuple[int, bool]:
    """Bytes that a step on `size` images needs on a device, as far as XLA says, and whether it fits."""
    model = build_model(config.model)

    def create_state():
        variables = initial_variables(model, config.train.seed)
        return TrainState.create(variables, make_optimizer(config, variables["params"]), config.train.ema_decay > 0)

    shapes = jax.eval_shape(create_state)
    shardings = state_shardings(shapes, mesh, config.train.shard_parameters)
    step = make_train_step(config, model, make_optimizer(config, shapes.params), mesh, shapes)
    own, crop = size // jax.process_count(), tuple(config.augmentation.crop)  # images of this host
    label_type = np.uint8 if config.data.ignore_label < 256 else np.uint16
    black, labels = np.zeros((own, *crop, 3), np.uint8), np.zeros((own, *crop), label_type)
    images, labels, classes = shard_batch((black, labels, np.zeros((own, max_targets), np.int32)), mesh)
    targets = Targets(labels, classes)
    needed = 0
    try:
        with paused_garbage_collection():
            compiled = step.lower(shape_dtype_structs(shapes, shardings), images, targets).compile()
        needed = _bytes_of(compiled)
        if needed > limit or jax.process_count() > 1:  # a host whose step fails would let the others wait
            return needed, needed <= limit
        jax.block_until_ready(compiled(jax.jit(create_state, out_shardings=shardings)(), images, targets))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return needed, False
    finally:
        release_compiler_memory(traces=True)
    return needed, True


def _bytes_of(compiled: jax.stages.Compiled) -> int:
    """What a program needs on a device: arguments, results that take no argument's place, temporary arrays."""
    memory = compiled.memory_analysis()
    if memory is None:  # this device's compiler does not say
        return 0
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
