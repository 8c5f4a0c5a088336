"""Programs for devices that are not there."""

import contextlib

import jax

H100 = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="cuda")


def lowered_text(function, *arguments, platform: str) -> str:
    """The StableHLO of `function` for a platform: "cpu", "cuda", "rocm" or "tpu"."""
    context = contextlib.nullcontext()
    if platform == "cuda":  # since JAX 0.12 Pallas asks which GPU it is
        context = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=H100))
    with context:
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
