"""Whether Triton can compile kernels: it is a part of JAX that has been deprecated since 0.11 and will be removed.

Without it, GPUs run what XLA compiles.
"""

import re
from types import ModuleType

import jax

__all__ = ["compiles_here", "pallas_triton", "suits"]


def pallas_triton() -> ModuleType | None:
    """`jax.experimental.pallas.triton`; None if the installed JAX has none."""
    try:
        from jax.experimental.pallas import triton  # Pallas takes a third of a second to import
    except ImportError:
        return None
    return triton


def suits(device: jax.Device) -> bool:
    """Whether Triton compiles for a device: NVIDIA's GPUs from Ampere on."""
    # "8.6" or the like on NVIDIA's GPUs, other text on others.
    capability = re.match(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
    return capability is not None and int(capability[1]) >= 8 and pallas_triton() is not None


def compiles_here() -> bool:
    """Whether a program for NVIDIA's GPUs may hold such kernels: for those that are here, or for any if none is."""
    gpus = [device for device in jax.devices() if device.platform == "gpu"]
    return all(map(suits, gpus)) and pallas_triton() is not None
