"""Synthetic weights: the value of a parameter follows from its PyTorch name and shape alone.

The golden arrays were computed with exactly these weights.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def synthetic_parameter(name: str, shape: Sequence[int]) -> np.ndarray:
    """Value of one parameter or running statistic, float32 with the given shape."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(shape)
    leaf = name.rsplit(".", 1)[-1]
    noise = rng.standard_normal(shape)
    if leaf == "running_var":
        value = 1 + 0.5 * rng.random(shape)
    elif leaf == "running_mean":
        value = 0.1 * noise
    elif any(part in name for part in ("query_feat", "query_embed", "level_embed")):
        value = noise
    elif leaf == "relative_position_bias_table":
        value = 0.5 * noise
    elif leaf == "bias":
        value = (2.0 if "sampling_offsets" in name else 0.1) * noise
    elif len(shape) == 1:
        value = 1 + 0.1 * noise
    else:
        value = noise * np.sqrt(1.0 / np.prod(shape[1:]))
        if "mask_embed.layers.2" in name:
            value = 2 * value
        if "class_embed" in name:
            value = 4 * value
        if "mask_features" in name or "mask_embed.layers" in name:
            value = value - value.mean(axis=1, keepdims=True)
        if ".predictor." in name and ("out_proj" in name or "linear2" in name):
            value = 0.4 * value
    return value.astype(np.float32)


def synthetic_state_dict(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """State dict of the given names and shapes, {PyTorch name: float32 array}."""
    return {name: synthetic_parameter(name, shape) for name, shape in shapes.items()}
