"""Choosing the devices that compute, and connecting the hosts of a cluster."""

import contextlib
import faulthandler
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import jax

from fasseg_jax.runtime.supervision import has_several_hosts, tell_supervisor

__all__ = ["choose_device", "choose_devices", "join_hosts", "lost_hosts_first"]

START_SECONDS = 300  # in which all hosts must start
RUNTIME_ERROR = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")


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


def join_hosts(lost_host_seconds: int) -> None:
    """Connect the hosts of a cluster; on a single machine, do nothing.

    JAX knows the hosts of Cloud TPU pods and of Slurm. Elsewhere set on every host JAX_COORDINATOR_ADDRESS to the first
    host's address and a free port, JAX_NUM_PROCESSES to the number of hosts, and JAX_PROCESS_ID to the host's index.

    Args:
      lost_host_seconds: a host that gives no sign of life for so long is lost, which ends the program on all hosts
        (see `fasseg_jax.runtime.supervision`).

    Raises:
      ValueError: some of the three are set, but not all, or the numbers are none.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    arguments: dict[str, Any] = {}
    if len(given) == len(names):
        for name in names[1:]:
            if not given[name].isdecimal():
                raise ValueError(f"{name} = {given[name]!r} in the environment must be a number")
        address, count, index = given.values()
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    elif given:
        raise ValueError(f"several hosts need all of {', '.join(names)} in the environment")
    elif not has_several_hosts():
        return
    tell_supervisor(seconds=lost_host_seconds, start_seconds=START_SECONDS)
    faulthandler.enable(file=2)  # where C++ writes, and not Python: stacks at an abort belong to its text
    jax.distributed.initialize(
        **arguments, heartbeat_timeout_seconds=lost_host_seconds, initialization_timeout=START_SECONDS
    )


@contextlib.contextmanager
def lost_hosts_first(lost_host_seconds: int) -> Iterator[None]:
    """If the block raises because the exchange with another host failed, wait until it is known which host is lost.

    JAX's coordination service then ends this process. If it does not, no host is lost, and the error is raised. Devices
    must be chosen before.

    Args:
      lost_host_seconds: of `join_hosts`.
    """
    if jax.distributed.is_initialized():
        tell_supervisor(host=jax.process_index(), hosts=jax.process_count())
    try:
        yield
    except Exception as error:
        if jax.distributed.is_initialized() and _comes_from_jax(error):
            time.sleep(lost_host_seconds + 30)
        raise


def _comes_from_jax(error: BaseException | None) -> bool:
    """Whether the runtime of JAX raised the error or one of its causes; some of its errors are a `ValueError`."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) or RUNTIME_ERROR.match(str(error)):
            return "RESOURCE_EXHAUSTED" not in str(error)
        error = error.__cause__ or error.__context__
    return False
