"""The whole network: images -> backbone -> pixel decoder -> decoder -> predictions."""

import contextlib
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fasseg_jax.models.backbones.resnet import ResNet
from fasseg_jax.models.backbones.swin import Swin
from fasseg_jax.models.layers.initializers import Dtype
from fasseg_jax.models.pixel_decoder import PixelDecoder
from fasseg_jax.models.predictions import FactoredPredictions, Predictions
from fasseg_jax.models.transformer_decoder import Decoder

__all__ = ["FASeg", "Predictions", "build_model", "initial_variables"]

CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "deformable_attention": ("auto", "gather", "dense", "fused"),
    "key_positions": ("conditional", "sine"),
    "backbone.kind": ("resnet", "swin"),
    "backbone.norm": ("frozen_batch_norm", "batch_norm"),
    "decoder.positional_queries": ("dfpq", "learned"),
    "decoder.first_focus": ("background", "foreground"),
    "decoder.hrca_selection": ("window", "pixel"),
}


class FASeg(nn.Module):
    """Images (B, H, W, 3), normalised float32, H and W multiples of 32 -> `Predictions`.

    `train` turns on batch statistics (update the collection `batch_stats`) and drop path (random stream "dropout").
    `all_predictions` returns those of the initial queries and of every layer, as training needs them, instead of the
    last layer's alone; "factored" keeps their masks as two factors, for the loss.
    """

    backbone: nn.Module
    pixel_decoder: PixelDecoder
    decoder: Decoder
    dtype: Dtype = jnp.float32

    def __call__(
        self, images: jax.Array, *, train: bool = False, all_predictions: bool | Literal["factored"] = False
    ) -> Predictions | FactoredPredictions:
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % 32 or images.shape[2] % 32:
            raise ValueError(f"images must be (B, H, W, 3) with H and W multiples of 32, not {images.shape}")
        with full_precision() if self.dtype == jnp.float32 else contextlib.nullcontext():
            features = self.backbone(images.astype(self.dtype), train)  # res2..res5, strides 4..32
            pixels = self.pixel_decoder(features)  # maps at strides 32, 16, 8, 4
            return self.decoder(pixels, all_predictions)


def full_precision():
    """float32 products in float32: TPUs otherwise round the factors to bfloat16, recent GPUs to TF32."""
    return jax.default_matmul_precision("highest")


def build_model(config: ConfigDict) -> FASeg:
    """The network of `config.model`.

    Raises:
      ValueError: a field has a value that is no choice.
    """
    for field, choices in CHOICES.items():
        value = config
        for part in field.split("."):
            value = value.get(part)
        if value is not None and value not in choices:
            raise ValueError(f"config.model.{field} is {value!r}; choose one of {', '.join(choices)}")
    dtype = jnp.dtype(config.dtype)
    backbone = {"resnet": ResNet, "swin": Swin}[config.backbone.kind]
    backbone_fields = {name: value for name, value in config.backbone.items() if name != "kind"}
    shared = {"hidden_dim": config.hidden_dim, "num_heads": config.num_heads, "dtype": dtype}
    return FASeg(
        backbone=backbone(**backbone_fields, remat=config.remat, dtype=dtype),
        pixel_decoder=PixelDecoder(
            **config.pixel_decoder,
            **shared,
            key_positions=config.key_positions,
            deformable_attention=config.deformable_attention,
            high_resolution_positions=config.decoder.hrca,
        ),
        decoder=Decoder(**config.decoder, **shared, remat=config.remat, num_classes=config.num_classes),
        dtype=dtype,
    )


def initial_variables(model: FASeg, seed: int) -> dict[str, Any]:
    """Random variables, the same for every machine."""
    return model.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)))
