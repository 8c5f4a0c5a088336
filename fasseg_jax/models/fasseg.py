"""The whole network: images -> backbone -> pixel decoder -> transformer decoder -> predictions."""

import contextlib
from collections.abc import Collection
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fasseg_jax.config import check_section
from fasseg_jax.models.backbones import BACKBONES, Backbone
from fasseg_jax.models.pixel_decoder import PixelDecoder
from fasseg_jax.models.predictions import FactoredPredictions, Predictions
from fasseg_jax.models.transformer_decoder import Decoder
from fasseg_jax.ops.threefry import random_key

__all__ = ["FASeg", "Predictions", "build_model", "initial_values", "initial_variables"]


class FASeg(nn.Module):
    """Images (B, H, W, 3), normalized, float32 -> predictions.

    `train` turns on batch statistics (update the collection `batch_stats`) and drop path (random stream "dropout").
    Only backbones have either; `frozen_backbone` keeps both off, so that the backbone computes as in prediction.
    `all_predictions` returns the predictions of the initial queries and of every layer, which training needs, instead
    of only the last layer's; "factored" returns their masks as two factors, for the loss.

    Raises:
      ValueError: H and W are no multiples of `size_divisor`.
    """

    backbone: Backbone
    pixel_decoder: PixelDecoder
    decoder: Decoder
    dtype: DTypeLike = jnp.float32

    @property
    def size_divisor(self) -> int:
        """H and W of the images must be multiples of this."""
        return self.backbone.size_divisor

    def __call__(
        self,
        images: Float[Array | np.ndarray, "..."],
        *,
        train: bool = False,
        frozen_backbone: bool = False,
        all_predictions: bool | Literal["factored"] = False,
    ) -> Predictions | FactoredPredictions:
        d = self.size_divisor
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] % d or images.shape[2] % d:
            raise ValueError(f"images must be (B, H, W, 3) with H and W multiples of {d}, not {images.shape}")
        with full_precision() if self.dtype == jnp.float32 else contextlib.nullcontext():
            features = self.backbone(  # res2 to res5, strides 4 to 32
                jnp.asarray(images, self.dtype), train and not frozen_backbone
            )
            pixels = self.pixel_decoder(features)  # maps at strides 32, 16, 8, 4
            return self.decoder(pixels, all_predictions)


def full_precision() -> contextlib.AbstractContextManager:
    """Matmuls of float32 in float32: TPUs otherwise round the factors to bfloat16, recent GPUs to TF32."""
    return jax.default_matmul_precision("highest")


def build_model(config: ConfigDict) -> FASeg:
    """The network of `config.model`.

    Raises:
      ConfigError: a field has a value that is not allowed.
    """
    check_section("model", config)
    backbone_type = BACKBONES[config.backbone.kind]
    dtype = jnp.dtype(config.dtype)
    backbone_fields = {**config.backbone, "remat": config.remat, "dtype": dtype}
    del backbone_fields["kind"]
    shared = {"hidden_dim": config.hidden_dim, "num_heads": config.num_heads, "dtype": dtype}
    return FASeg(
        backbone=backbone_type(**backbone_fields),
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
    """Random variables, the same on every machine."""
    size = model.size_divisor * 2
    return dict(model.init(random_key(seed), jnp.zeros((1, size, size, 3))))


def initial_values(model: FASeg, seed: int, names: Collection[str]) -> dict[str, np.ndarray]:
    """Those of `initial_variables` that are named, such as params/decoder/query_feat, on the host.

    XLA leaves out what is not asked for. The host's processor computes them, whatever the devices are, so that a seed
    gives the same everywhere and nothing is compiled for the devices.
    """

    @jax.jit
    def initialize() -> dict[str, jax.Array]:
        variables = flatten_dict(initial_variables(model, seed), sep="/")
        return {name: variables[name] for name in names}

    with jax.default_device(_host_processor()):
        return jax.device_get(initialize()) if names else {}


def _host_processor() -> jax.Device | None:
    """The host as a device of JAX; None if the environment variable JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
