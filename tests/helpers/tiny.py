"""The tiny model of the tests: every part of FASeg, small enough to compile in seconds."""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.config import convnext, load_config, resnet, swin, vit
from fasseg_jax.models.fasseg import FASeg, build_model

# Five decoder layers are one round of the scales (strides 32, 16, 8, HRCA) and the layer after it.
TINY_MODEL = {
    "hidden_dim": 32,
    "num_heads": 4,
    "pixel_decoder.num_layers": 1,
    "pixel_decoder.ffn_dim": 32,
    "decoder.num_queries": 9,
    "decoder.num_layers": 5,
    "decoder.ffn_dim": 32,
}
TINY_BACKBONES = {
    "convnext": (convnext("t"), {"blocks": (1, 2, 1, 1), "width": 8}),
    "resnet": (resnet(50), {"blocks": (1, 1, 1, 1), "width": 8}),
    "swin": (swin("t"), {"embed_dim": 8, "blocks": (1, 2, 1, 1), "heads": (1, 2, 4, 8), "window": 2}),
    "vit": (vit("s"), {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 32}),
}


def tiny_config(backbone: str = "resnet", num_classes: int = 19) -> ConfigDict:
    """The tiny model for Cityscapes' classes; photos have a shorter side of 64 pixels, crops and windows have 64x96."""
    config = load_config("configs/cityscapes.py:r50")
    config.model.num_classes = num_classes
    recipe, sizes = TINY_BACKBONES[backbone]
    config.model.backbone = recipe.copy_and_resolve_references()  # tests change it
    config.model.backbone.update(sizes)
    config.model.update_from_flattened_dict(TINY_MODEL)
    config.augmentation.crop = (64, 96)
    config.inference.update(short_side=64, max_long_side=128)
    config.inference.multi_scale.update(short_sides=(32, 64), max_long_side=128)
    return config


@functools.cache
def tiny_model() -> tuple[ConfigDict, dict]:
    """Configuration and variables of a random model of 19 classes that finds several of them."""
    config = tiny_config()
    config.model.decoder.num_layers = 2  # compiles in half the time, and many tests of prediction compile it
    model = build_model(config.model)
    images = np.random.default_rng(0).standard_normal((1, 64, 96, 3)).astype(np.float32)
    init, predict = (jax.jit(function, static_argnames="train") for function in (model.init, model.apply))
    variables = jax.tree.map(np.array, init(jax.random.key(0), images, train=False))
    decoder = variables["params"]["decoder"]
    for name in ("class_embed", "mask_embed_2"):
        decoder[name]["kernel"] *= 20
    # Without this, one class wins everywhere.
    decoder["class_embed"]["bias"] -= np.mean(predict(variables, images, train=False).class_logits[0], axis=0)
    return config, variables


def random_variables(model: FASeg, size: tuple[int, int] = (64, 96), seed: int = 0) -> dict:
    """Variables in the shapes of the model's, none of them zero. Compiling the true initialization takes seconds."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), np.float32))
    rng = np.random.default_rng(seed)

    def draw(path, array):
        if path[-1].key in ("var", "scale"):
            return np.ones(array.shape, array.dtype)
        fan_in = int(np.prod(array.shape[:-1])) or 1
        return (rng.standard_normal(array.shape) / np.sqrt(fan_in)).astype(array.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft patches of random colors, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
