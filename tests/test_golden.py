"""The network against numbers of the official PyTorch programs (see tests/golden)."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from fasseg_jax import build_model, convert_state_dict, load_config
from fasseg_jax.data.preprocessing import normalize
from tests.golden.subsample import KEPT
from tests.golden.synthetic_weights import synthetic_state_dict
from tests.helpers import GOLDEN

CONFIGS = {
    "faseg_r50_ade20k": "configs/ade20k.py:r50",
    "faseg_swin_tiny_ade20k": "configs/ade20k.py:swin_t",
    "faseg_r50_cityscapes": "configs/cityscapes.py:r50",
    "mask2former_r50_ade20k": "configs/ade20k.py:mask2former_r50",
}

pytestmark = pytest.mark.slow  # full-size networks

FEATURE_TOLERANCE = 1e-4
CLASS_TOLERANCE = 2e-4
MASK_TOLERANCE = 1e-3
QUERY_POSITION_TOLERANCE = 2e-4


class Golden:
    """Arrays of one case: complete with `--reference`, else thinned; `compare` thins the model's in the same way."""

    def __init__(self, name: str, reference: Path | None):
        self.arrays = np.load((reference or GOLDEN) / f"{name}.npz")
        self.thinned = reference is None

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def compare(self, key: str, ours: jax.Array, tolerance: float):
        if self.thinned:
            ours = ours[KEPT.get(key, ...)]
        np.testing.assert_allclose(ours, self.arrays[key], rtol=0, atol=tolerance, err_msg=key)


def synthetic_weights(name: str) -> dict[str, np.ndarray]:
    return synthetic_state_dict(json.loads((GOLDEN / "state_dict_names.json").read_text())[name]["state_dict"])


def capture(model, variables, images):
    """All predictions, and what the parts hand on: (Predictions, intermediates)."""
    parts = ("backbone", "pixel_decoder")
    run = jax.jit(
        lambda variables, images: model.apply(
            variables,
            images,
            all_predictions=True,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name in parts,
        )
    )
    predictions, state = run(variables, images)
    return predictions, state["intermediates"]


@pytest.mark.parametrize("name", CONFIGS)
def test_forward(name, request):
    golden = Golden(name, request.config.getoption("--reference"))
    config = load_config(CONFIGS[name]).model
    model = build_model(config)
    variables = convert_state_dict(synthetic_weights(name), config)
    images = normalize(golden["image"])[None]
    predictions, intermediates = capture(model, variables, images)

    for stage, feature in enumerate(intermediates["backbone"]["__call__"][0], start=2):
        channel_first = feature[0].transpose(2, 0, 1)
        golden.compare(f"backbone/res{stage}", channel_first[::16, ::4, ::4], FEATURE_TOLERANCE)

    pixels = intermediates["pixel_decoder"]["__call__"][0]
    mask_features = pixels.mask_features[0].transpose(2, 0, 1)
    golden.compare("pixel_decoder/mask_features", mask_features[::8, ::2, ::2], FEATURE_TOLERANCE)
    for kind, maps in (("feature", pixels.features), ("position", pixels.positions)):
        for i, s in enumerate((1, 2, 2, 4)):
            if (key := f"pixel_decoder/{kind}{i}") in golden.arrays:
                golden.compare(key, maps[i][0].transpose(2, 0, 1)[::8, ::s, ::s], FEATURE_TOLERANCE)

    if "decoder/query_pos" in golden.arrays:
        decoder = intermediates["decoder"]
        query_positions = np.stack([each[0] for each in decoder["query_positions"]])
        golden.compare("decoder/query_pos", query_positions, QUERY_POSITION_TOLERANCE)
        for i in range(3):
            golden.compare(f"decoder/attention{i}", decoder["attention"][i][0], FEATURE_TOLERANCE)
        for windows, layer in zip(decoder["hrca_windows"], (3, 7, 11), strict=True):
            np.testing.assert_array_equal(windows[0], golden[f"decoder/hrca_windows{layer}"])

    golden.compare("decoder/pred_logits", predictions.class_logits[:, 0], CLASS_TOLERANCE)
    golden.compare("decoder/pred_masks_sub4", predictions.mask_logits[:, 0, :, ::4, ::4], MASK_TOLERANCE)
    golden.compare("decoder/pred_masks_last", predictions.mask_logits[-1, 0], MASK_TOLERANCE)

    # The form for inference gives the last of these.
    last = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(last.class_logits, predictions.class_logits[-1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(last.mask_logits, predictions.mask_logits[-1], rtol=0, atol=1e-4)


def test_bfloat16_stays_close():
    """bfloat16 keeps 8 bits: 3% of the logits' spread, the largest error 10%, on weights that are hard on it."""
    name = "faseg_r50_ade20k"
    golden = Golden(name, None)
    config = load_config(CONFIGS[name]).model
    config.dtype = "bfloat16"
    variables = convert_state_dict(synthetic_weights(name), config)
    predictions = jax.jit(build_model(config).apply)(variables, normalize(golden["image"])[None])
    assert predictions.class_logits.dtype == predictions.mask_logits.dtype == np.float32
    for ours, key in (
        (predictions.class_logits[0], "decoder/pred_logits"),
        (predictions.mask_logits[0], "decoder/pred_masks_last"),
    ):
        expected = golden[key][-1] if key == "decoder/pred_logits" else golden[key]
        thin = KEPT[key][1:] if key == "decoder/pred_logits" else KEPT[key]
        error = np.abs(np.asarray(ours)[thin] - expected)
        spread = expected.std()
        print(key, "mean error", error.mean() / spread, "largest", error.max() / spread)
        assert error.mean() < 0.03 * spread
        assert error.max() < 0.5 * spread
