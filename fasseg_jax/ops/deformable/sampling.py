"""Multi-scale deformable sampling: the operation, its derivative, and the choice of a method."""

import functools
import re
from collections.abc import Callable

import jax

from fasseg_jax.ops.deformable.gather import _gather_sample, _gather_sample_gradients
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.runtime.distributed import DATA, on_each_device

__all__ = ["deformable_sample"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def deformable_sample(
    values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes, method: str = "auto"
) -> jax.Array:
    """Weighted sum of bilinear samples from several levels.

    The derivative is written by hand: it takes half the time of the automatic one, and keeps no samples in memory.

    Args:
      values: (B, N, M, D), tokens of all levels concatenated, each level row-major.
      locations: (B, Q, M, levels, P, 2), xy in [0, 1] with pixel centres at half-integers; zero outside.
      weights: (B, Q, M, levels, P).
      shapes: (h, w) of each level, a tuple of tuples.
      method: "gather"; "dense" (products, for TPUs) or "fused" (one kernel, for NVIDIA GPUs), both emulated, slowly,
        elsewhere; or "auto": dense on TPUs, fused on NVIDIA GPUs from Ampere on, unless there are several and no mesh
        says how images lie on them (see `parallel.on_each_device`), else gather. To compile for a device that is not
        there, name the method.

    Returns:
      (B, Q, M, D) in the dtype of `values`; coordinates, weights and the sum are float32.
    """
    with jax.named_scope("deformable_sample"):
        sample, _ = _functions(method)
        return on_each_device(functools.partial(sample, shapes=shapes))(values, locations, weights)


def _sample_forward(values, locations, weights, shapes, method):
    return deformable_sample(values, locations, weights, shapes, method), (values, locations, weights)


def _sample_backward(shapes, method, inputs, gradient):
    with jax.named_scope("deformable_sample_gradients"):
        _, gradients = _functions(method)
        return on_each_device(functools.partial(gradients, shapes=shapes))(*inputs, gradient)


deformable_sample.defvjp(_sample_forward, _sample_backward)


def _functions(method: str) -> tuple[Callable, Callable]:
    """Sampling and its derivative. Pallas, which takes a third of a second to load, is loaded only where it is used."""
    if method == "auto":
        method = _fastest_method()
    if method == "dense":
        from fasseg_jax.ops.deformable import tpu as dense

        return dense.dense_sample, dense.dense_sample_gradients
    if method == "fused":
        from fasseg_jax.ops.deformable import gpu as fused

        return fused.fused_sample, fused.fused_sample_gradients
    return _gather_sample, _gather_sample_gradients


def _fastest_method() -> str:
    device = jax.devices()[0]
    if jax.device_count() > 1 and DATA not in jax.sharding.get_abstract_mesh().axis_names:
        return "gather"  # XLA divides no kernel among devices
    # "8.6" or the like of NVIDIA's; Triton compiles for 8.0 and later ones.
    capability = re.match(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
    if capability and int(capability[1]) >= 8:
        return "fused"
    return "dense" if device.platform == "tpu" else "gather"
