"""Multi-scale deformable sampling: the operation, its derivative, and the choice of a method.

Computes the same as `reference.deformable_sample`. The difference: the methods never store the samples, which would be
as large as levels * P copies of the output, and their derivatives are written by hand, in half the time of JAX's own.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from fasseg_jax.ops import triton
from fasseg_jax.ops.deformable.geometry import Shapes
from fasseg_jax.runtime.distributed import DATA, on_each_device

__all__ = ["METHODS", "Method", "deformable_sample"]


def is_tpu(device: jax.Device) -> bool:
    """Whether the device is a TPU."""
    return device.platform == "tpu"


def is_any(device: jax.Device) -> bool:
    """True."""
    return True


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to compute deformable sampling.

    Attributes:
      module: in `fasseg_jax.ops.deformable`, with two functions: `sample`, which takes the arguments of
        `deformable_sample`, and `sample_gradients`, which takes those with the output's cotangent before `shapes` and
        returns the gradients of values, locations and weights.
      suits: whether the method is the fastest on a device; "auto" takes the first that suits.
      divisible: whether XLA can divide it among several devices by itself.
      exportable: whether later versions of JAX promise to run an exported program that holds it.
    """

    module: str
    suits: Callable[[jax.Device], bool]
    divisible: bool
    exportable: bool

    def load(self) -> tuple[Callable, Callable]:
        """The two functions. Kernels are imported only here, because Pallas takes a third of a second to import."""
        module = importlib.import_module(f"fasseg_jax.ops.deformable.{self.module}")
        return module.sample, module.sample_gradients


# A new method is one new file and one line here. Each runs on every device; Pallas emulates the kernels, slowly, where
# they cannot be compiled.
METHODS = {
    "gpu": Method("gpu", triton.suits, divisible=False, exportable=False),  # one kernel
    "tpu": Method("tpu", is_tpu, divisible=False, exportable=True),  # matmuls
    "gather": Method("gather", is_any, divisible=True, exportable=True),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def deformable_sample(
    values: Float[Array, "B N M D"],
    locations: Float[Array, "B Q M levels P 2"],
    weights: Float[Array, "B Q M levels P"],
    shapes: Shapes,
    method: str = "auto",
) -> Float[Array, "B Q M D"]:
    """Weighted sum of bilinear samples from several levels (Deformable DETR, equation 3).

    Args:
      values: tokens of all levels, one level after the other, each row-major.
      locations: xy in [0, 1] of each level, pixel centers at half-integers; a level is zero outside.
      weights: of the samples.
      shapes: (h, w) of each level.
      method: a key of `METHODS`, or "auto" for the fastest on this device. Where several devices share a batch and no
        mesh tells how (see `on_each_device`), "auto" takes one that XLA can divide among them. To compile for a device
        that is not there, name the method.

    Returns:
      The sums in the dtype of `values`; coordinates, weights and sums are computed in float32.
    """
    with jax.named_scope("deformable_sample"):
        sample, _ = _find(method).load()
        return on_each_device(functools.partial(sample, shapes=shapes))(values, locations, weights)


def _sample_forward(values, locations, weights, shapes, method):
    return deformable_sample(values, locations, weights, shapes, method), (values, locations, weights)


def _sample_backward(shapes, method, residuals, grad_out):
    with jax.named_scope("deformable_sample_gradients"):
        _, sample_gradients = _find(method).load()
        return on_each_device(functools.partial(sample_gradients, shapes=shapes))(*residuals, grad_out)


deformable_sample.defvjp(_sample_forward, _sample_backward)


def _find(name: str) -> Method:
    if name != "auto":
        return METHODS[name]
    undivided = jax.device_count() > 1 and DATA not in jax.sharding.get_abstract_mesh().axis_names
    device = jax.devices()[0]
    return next(m for m in METHODS.values() if m.suits(device) and (m.divisible or not undivided))
