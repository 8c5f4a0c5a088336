"""How fast a training is, and how much of what its devices could do it uses."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.summary.flops import count_multiply_adds
from fasseg_jax.training.optimizer import is_frozen

__all__ = ["PEAK_FLOPS", "StepSize", "peak_flops", "step_size", "training_flops"]

# `device.device_kind` -> FLOP/s of a device in bfloat16, without sparsity. A TPU of v4 and later is one device a chip,
# except TPU7x, whose chip of 2,307 TFLOP/s is two.
# Sources: https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e and /tpu7x; NVIDIA's data sheets of A100, H100, H200
# and L4, which give twice as much "with sparsity" for all but the A100.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA L4": 121e12,
}
# The network computes float32 in full precision: on GPUs outside of the matrix units, by the same data sheets.
GPU_FLOAT32_FLOPS = {"A100": 19.5e12, "H100 80GB": 67e12, "H100 PCIe": 51e12, "H200": 67e12, "L4": 30.3e12}
TPU_FLOAT32_PASSES = 6  # bfloat16 products for one of float32 in full precision (jax.lax.Precision.HIGHEST)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that a device can do at most, for `config.model.dtype`; None if the kind is not in the table."""
    peak = PEAK_FLOPS.get(device_kind)
    if peak is None or dtype == "bfloat16":
        return peak
    if device_kind.startswith("TPU"):
        return peak / TPU_FLOAT32_PASSES
    return next(flops for name, flops in GPU_FLOAT32_FLOPS.items() if name in device_kind)


def training_flops(config: ConfigDict) -> int:
    """Operations that training on one image needs: two for each multiply-add, and twice the forward pass for backward.

    What a program rematerializes does not count. A frozen backbone has no backward pass.
    """
    model = build_model(config.model)
    variables = jax.eval_shape(lambda: initial_variables(model, 0))
    image = jax.ShapeDtypeStruct((1, *config.augmentation.crop, 3), jnp.float32)
    forward = jax.make_jaxpr(lambda *arguments: model.apply(*arguments, all_predictions="factored"))(variables, image)
    counts = count_multiply_adds(forward.jaxpr)

    def passes(scope: str) -> int:
        frozen = is_frozen(config) and "/backbone/" in f"{scope}/" and "/pyramid/" not in f"{scope}/"
        return 1 if frozen else 3

    return sum(2 * count * passes(scope) for scope, count in counts.items())


@dataclasses.dataclass(frozen=True)
class StepSize:
    """What a step takes.

    Attributes:
      images: of all devices together.
      devices: their number.
      peak_seconds: that a device at its peak would need for an image; None if its peak is not known.
    """

    images: int
    devices: int
    peak_seconds: float | None

    def rates(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """The numbers to log of an interval.

        Args:
          seconds: per step, of `RunClock.interval`.
        """
        images_per_s = self.images / (seconds["input"] + seconds["compute"])
        utilization = {}
        if self.peak_seconds is not None:
            utilization["model_flops_utilization"] = images_per_s / self.devices * self.peak_seconds
        return {
            "images_per_s": images_per_s,
            "images_per_s_per_device": images_per_s / self.devices,
            **utilization,
            "seconds_input": seconds["input"],
            "seconds_compute": seconds["compute"],
            "seconds_checkpoint": seconds["checkpoints"],
        }


def step_size(config: ConfigDict, devices: int, device_kind: str) -> StepSize:
    """The size of the step of a configuration. Counting its operations traces the network, if the peak is known."""
    peak = peak_flops(device_kind, config.model.dtype)
    seconds = None if peak is None else training_flops(config) / peak
    return StepSize(config.train.batch_size, devices, seconds)
