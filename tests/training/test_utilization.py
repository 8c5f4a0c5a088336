"""Images per second, and the share of a device's peak."""

import jax
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.training.utilization import PEAK_FLOPS, StepSize, peak_flops, step_size, training_flops
from tests.helpers.tiny import tiny_config


def test_rates():
    seconds = {"input": 0.5, "compute": 1.5, "checkpoints": 0.25}
    rates = StepSize(images=64, devices=8, peak_seconds=0.05).rates(seconds)
    assert rates == pytest.approx(
        {
            "images_per_s": 32,
            "images_per_s_per_device": 4,
            "model_flops_utilization": 0.2,
            "seconds_input": 0.5,
            "seconds_compute": 1.5,
            "seconds_checkpoint": 0.25,
        }
    )
    assert "model_flops_utilization" not in StepSize(64, 8, None).rates(seconds)


def test_peaks():
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v5 lite", "float32") == pytest.approx(197e12 / 6)
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") == 67e12
    assert all(0 < peak_flops(kind, "float32") < peak / 3 for kind, peak in PEAK_FLOPS.items())
    assert peak_flops(jax.devices("cpu")[0].device_kind, "float32") is None


@pytest.mark.slow
def test_operations_of_training():
    """R50 at 512x512: 72 billion multiply-adds by the paper's table 1, in which the masks are at full size."""
    config = load_config("configs/ade20k.py:r50")
    flops = training_flops(config)
    masks = 14 * 100 * 256 * 128 * 128
    assert 0.97 * (72e9 - masks) < flops / 6 < 72e9
    assert step_size(config, devices=16, device_kind="TPU v5 lite") == StepSize(16, 16, flops / (197e12 / 6))
    assert step_size(config, devices=16, device_kind="cpu") == StepSize(16, 16, None)
    config.optimizer.backbone_multiplier = 0.0
    backbone = (4.089e9 - 2048 * 1000) * (512 / 224) ** 2  # torchvision's count at 224x224, without the classifier
    assert flops - training_flops(config) == pytest.approx(4 * backbone, rel=1e-3)


@pytest.mark.slow
def test_a_frozen_vit_trains_its_pyramid():
    config = tiny_config("vit")
    saved = training_flops(config)
    config.optimizer.backbone_multiplier = 0.0
    saved -= training_flops(config)
    width, mlp, patches, tokens = 16, 32, 5 * 7, 5 * 7 + 1  # 64x96 pixels are resized to multiples of 14
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp
    positions = (5 * 37 * 37 + 5 * 7 * 37) * width  # their table is resized, first the rows
    assert saved == 4 * (patches * 14 * 14 * 3 * width + 2 * block + positions)
