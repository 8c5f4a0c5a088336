"""Programs for devices that are not there."""

import contextlib
import sys
import unittest.mock

import jax
from jax.experimental import pallas

H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="cuda")


def lowered_text(function, *arguments, platform: str) -> str:
    """The StableHLO of `function` for a platform: "cpu", "cuda", "rocm" or "tpu"."""
    context = contextlib.nullcontext()
    if platform == "cuda":  # since JAX 0.12 Pallas asks which GPU it is
        context = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=H100))
    with context:
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def device(platform, compute_capability=""):
    """Something like a device, to choose methods by."""
    return unittest.mock.Mock(spec=jax.Device, platform=platform, compute_capability=compute_capability)


TPU = device("tpu")
AMPERE = device("gpu", "8.6")
BLACKWELL = device("gpu", "12.0")
TURING = device("gpu", "7.5")  # Triton compiles for none before Ampere
AMD = device("gpu", "gfx942")


def have_devices(monkeypatch, devices):
    """Let JAX say that these are all."""
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))


def remove_triton(monkeypatch):
    """As a later JAX will."""
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr(pallas, "triton", raising=False)
