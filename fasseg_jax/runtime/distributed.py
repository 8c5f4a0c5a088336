"""The mesh of devices, and the shardings of arrays on it: batches are sharded, parameters replicated or sharded."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = [
    "DATA",
    "all_gather_objects",
    "batch_sharding",
    "fetch_replicated",
    "make_mesh",
    "on_each_device",
    "replicated",
    "shape_dtype_structs",
    "shard_batch",
    "state_shardings",
]

DATA = "data"  # the one axis of the mesh
SMALLEST_SHARDED = 2**14  # elements; gathering a smaller array costs more than keeping it on every device


def make_mesh() -> Mesh:
    """All devices of all hosts along one axis."""
    return Mesh(np.array(jax.devices()), (DATA,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Each device holds its own images of a batch."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, shard_parameters: bool) -> Any:
    """The sharding of each array of a training state.

    Args:
      state: a tree of arrays or `ShapeDtypeStruct`s.
      mesh: of `make_mesh`.
      shard_parameters: shard each large array (fully sharded data parallel) instead of replicating it. It is sharded
        along its longest axis that the number of devices divides. XLA gathers a layer's parameters when it needs them.
    """

    def sharding(leaf):
        if shard_parameters and leaf.size >= SMALLEST_SHARDED:
            for axis in np.argsort([-n for n in leaf.shape], kind="stable"):
                if leaf.shape[axis] % mesh.size == 0:
                    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))
        return replicated(mesh)

    return jax.tree.map(sharding, state)


def on_each_device(function: Callable) -> Callable:
    """Wrap a function of arrays (B, ...) so that each device runs it on its own images.

    For gathers across the batch, Pallas kernels and library calls: XLA cannot tell that these act on each image by
    itself, and would all-gather the batch first. The wrapper acts only if the current mesh shards images along `DATA`
    (`jax.sharding.use_abstract_mesh`, as in the training step). Within `jax.shard_map` they are sharded already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.auto_axes:
        return function
    images = PartitionSpec(DATA)
    return jax.shard_map(function, mesh=mesh, in_specs=images, out_specs=images, check_vma=False)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Make global arrays, sharded over all devices, of each host's part of a batch (NumPy arrays)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def shape_dtype_structs(shapes: Any, shardings: Any) -> Any:
    """Join a tree of shapes and a tree of shardings: `ShapeDtypeStruct`s with shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def fetch_replicated(tree: Any, mesh: Mesh) -> Any:
    """Fetch whole arrays to this host's first device, however they are sharded. All hosts must call it."""
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


def all_gather_objects(value: Any) -> list[Any]:
    """The values of all hosts, in the order of the hosts. All hosts must call it, and wait for each other there.

    Args:
      value: anything that JSON can hold; integers of any size and floats arrive exactly.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))  # (hosts,)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(text)] = text
    texts = np.asarray(multihost_utils.process_allgather(padded))  # (hosts, longest)
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]
