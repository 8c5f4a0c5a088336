"""Choosing the device that computes, and keeping compiled programs between runs."""

import importlib.util
import os

import jax

from fasseg_jax.runtime.files import Path

__all__ = ["choose_device", "choose_devices", "join_hosts"]


def choose_device(platform: str | None) -> jax.Device:
    """Let JAX compute on the first device of a platform; call it before anything else of JAX.

    Args:
      platform: "cpu", "gpu" or "tpu"; None leaves the choice to JAX.

    Raises:
      RuntimeError: there is no such device, or JAX is installed without support for it.
    """
    device = choose_devices(platform)[0]
    jax.config.update("jax_default_device", device)
    return device


def choose_devices(platform: str | None) -> list[jax.Device]:
    """This host's devices of a platform; arguments and errors as those of `choose_device`."""
    if platform == "cpu":
        jax.config.update("jax_platforms", "cpu")  # a GPU would otherwise be initialised and its memory reserved
    try:
        return jax.local_devices(backend=platform)
    except RuntimeError as error:
        available = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise RuntimeError(f"no {platform} found by JAX (found: {available}); is JAX installed for it?") from error


def join_hosts() -> None:
    """Let the hosts of a cluster find each other; on a single machine do nothing.

    On Cloud TPU pods and under Slurm all is known. Elsewhere set, on every host, JAX_COORDINATOR_ADDRESS to the first
    host's address and a free port, JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0.

    Raises:
      ValueError: not all three are set.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, number = (os.environ.get(name) for name in names)
    if address and count and number:
        jax.distributed.initialize(address, int(count), int(number))
    elif address or count or number:
        raise ValueError(f"several hosts need all of {', '.join(names)} in the environment")
    elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 or _is_tpu_machine():
        jax.distributed.initialize()


def _is_tpu_machine() -> bool:
    """A Cloud TPU machine, perhaps one of a pod: TPU devices, and the library for them."""
    has_devices = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return has_devices and importlib.util.find_spec("libtpu") is not None
