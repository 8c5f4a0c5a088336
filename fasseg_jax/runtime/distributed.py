"""The mesh of devices, and the shardings of arrays on it: batches are sharded, parameters replicated or sharded.

The devices of a TPU pod slice have fast links among them, and so have GPUs that NVLink joins. Several slices exchange
data over the slower network of the data center. A mesh of several slices has the axes `SLICE` and `DATA`: the batch is
sharded over both, parameters over `DATA` only. Each slice thus holds them all, and only gradients and sums of the loss
cross between slices.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

__all__ = [
    "DATA",
    "SLICE",
    "all_gather_objects",
    "batch_axes",
    "batch_sharding",
    "fetch_replicated",
    "gather_within_slices",
    "make_mesh",
    "on_each_device",
    "replicated",
    "shape_dtype_structs",
    "shard_batch",
    "state_shardings",
]

DATA = "data"  # the mesh's axis of the devices of a slice
SLICE = "slice"  # the mesh's axis of slices; a mesh of one slice has none
SMALLEST_SHARDED = 2**14  # elements; gathering a smaller array costs more than keeping it on every device


def make_mesh(devices: Sequence[jax.Device] | None = None, num_slices: int | None = None) -> Mesh:
    """A mesh with the axis `DATA`, or with `SLICE` and `DATA` if the devices lie in several slices.

    Args:
      devices: by default all devices of all hosts.
      num_slices: cut the devices, in their order, into so many slices. By default each device says in which slice it
        lies; devices that do not, such as CPUs, are one slice.

    Raises:
      ValueError: slices differ in their number of devices.
    """
    devices = jax.devices() if devices is None else devices
    slices: dict[int, list[jax.Device]] = defaultdict(list)
    for number, device in enumerate(devices):
        given = getattr(device, "slice_index", 0) if num_slices is None else number * num_slices // len(devices)
        slices[given].append(device)
    if len({len(members) for members in slices.values()}) > 1:
        sizes = ", ".join(f"{len(members)} in slice {index}" for index, members in sorted(slices.items()))
        raise ValueError(f"slices must have the same number of devices, and here are {sizes}")
    if len(slices) == 1:
        return Mesh(np.array(devices), (DATA,))
    return Mesh(np.array([slices[index] for index in sorted(slices)]), (SLICE, DATA))


def batch_axes(mesh: Mesh | AbstractMesh) -> str | tuple[str, ...]:
    """The axes of a mesh of `make_mesh` over which batches are sharded."""
    return (SLICE, DATA) if SLICE in mesh.axis_names else DATA


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Each device holds its own images of a batch."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Any, mesh: Mesh, shard_parameters: bool) -> Any:
    """The sharding of each array of a training state.

    Args:
      state: a tree of arrays or `ShapeDtypeStruct`s.
      mesh: of `make_mesh`.
      shard_parameters: shard each large array (fully sharded data parallel) over the devices of a slice, instead of
        replicating it. It is sharded along its longest axis that their number divides. XLA gathers a layer's parameters
        when it needs them, each slice by itself.
    """

    def sharding(leaf):
        if shard_parameters and leaf.size >= SMALLEST_SHARDED:
            for axis in np.argsort([-n for n in leaf.shape], kind="stable"):
                if leaf.shape[axis] % mesh.shape[DATA] == 0:
                    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))
        return replicated(mesh)

    return jax.tree.map(sharding, state)


def gather_within_slices(params: Any, mesh: Mesh) -> Any:
    """The whole parameters on every device, for a forward and backward pass over several slices.

    Each slice gathers what `state_shardings` has sharded over it, and the gradient of a sharded array is sharded alike.
    Left to itself, XLA would shard activations as the parameters are, and gather images across slices.
    """

    def whole(x, sharding):
        @jax.custom_vjp
        def gather(x):
            return jax.lax.with_sharding_constraint(x, replicated(mesh))

        gather.defvjp(lambda x: (gather(x), None), lambda _, g: (jax.lax.with_sharding_constraint(g, sharding),))
        return x if sharding.is_fully_replicated else gather(x)

    return jax.tree.map(whole, params, state_shardings(params, mesh, shard_parameters=True))


def on_each_device(function: Callable) -> Callable:
    """Wrap a function of arrays (B, ...) so that each device runs it on its own images.

    For gathers across the batch, Pallas kernels and library calls: XLA cannot tell that these act on each image by
    itself, and would all-gather the batch first. The wrapper acts only if the current mesh shards images
    (`jax.sharding.use_abstract_mesh`, as in the training step). Within `jax.shard_map` they are sharded already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.auto_axes:
        return function
    images = PartitionSpec(batch_axes(mesh))
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
