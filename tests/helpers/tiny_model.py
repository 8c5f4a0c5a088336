"""A tiny model for the tests of prediction."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.config import base_config
from fasseg_jax.models.fasseg import build_model


def tiny_config() -> ConfigDict:
    config = base_config()
    config.data.dataset = "cityscapes"
    config.model.num_classes = 19
    config.model.hidden_dim = 32
    config.model.num_heads = 4
    config.model.backbone.blocks = (1, 1, 1, 1)
    config.model.backbone.width = 8
    config.model.pixel_decoder.num_layers = 1
    config.model.decoder.num_queries = 6
    config.model.decoder.num_layers = 2
    config.inference.short_side = 64
    config.inference.max_long_side = 128
    config.inference.multi_scale.update(short_sides=(32, 64), max_long_side=128)
    config.augmentation.crop = (64, 96)  # the size of sliding windows
    return config


@functools.cache
def tiny_model() -> tuple[ConfigDict, dict]:
    """Configuration and variables of a random model that finds several classes."""
    config = tiny_config()
    model = build_model(config.model)
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype(np.float32)
    init, predict = (jax.jit(function, static_argnames="train") for function in (model.init, model.apply))
    variables = jax.tree.map(np.array, init(jax.random.key(0), images, train=False))
    decoder = variables["params"]["decoder"]
    for name in ("class_embed", "mask_embed_2"):
        decoder[name]["kernel"] *= 20
    # Without this one class wins everywhere.
    decoder["class_embed"]["bias"] -= np.mean(predict(variables, images, train=False).class_logits[0], axis=0)
    return config, variables


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft patches of random colours, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
