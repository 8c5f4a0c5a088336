"""Choosing the devices that compute, and connecting the hosts of a cluster."""

import importlib.util
import os

import jax

from fasseg_jax.runtime.files import Path

__all__ = ["choose_device", "choose_devices", "join_hosts"]


def choose_device(platform: str | None) -> jax.Device:
    """Let JAX compute on the first device of a platform. Call it before anything else of JAX.

    Args:
      platform: "cpu", "gpu" or "tpu"; None leaves the choice to JAX.

    Raises:
      RuntimeError: there is no such device, or the installed JAX does not support it.
    """
    device = choose_devices(platform)[0]
    jax.config.update("jax_default_device", device)
    return device


def choose_devices(platform: str | None) -> list[jax.Device]:
    """This host's devices of a platform, with the arguments and errors of `choose_device`."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")  # otherwise JAX initializes a GPU, and reserves its memory
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as error:
        available = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise RuntimeError(f"no {platform} found by JAX (found: {available}); is JAX installed for it?") from error


def join_hosts() -> None:
    """Connect the hosts of a cluster; on a single machine, do nothing.

    JAX knows the hosts of Cloud TPU pods and of Slurm. Elsewhere set on every host JAX_COORDINATOR_ADDRESS to the first
    host's address and a free port, JAX_NUM_PROCESSES to the number of hosts, and JAX_PROCESS_ID to the host's index.

    Raises:
      ValueError: some of the three are set, but not all.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = (os.environ.get(name) for name in names)
    if address and count and index:
        jax.distributed.initialize(address, int(count), int(index))
    elif address or count or index:
        raise ValueError(f"several hosts need all of {', '.join(names)} in the environment")
    elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 or _is_tpu_machine():
        jax.distributed.initialize()


def _is_tpu_machine() -> bool:
    """Whether this is a Cloud TPU machine, perhaps one of a pod: it has TPU devices and the library for them."""
    has_devices = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return has_devices and importlib.util.find_spec("libtpu") is not None
