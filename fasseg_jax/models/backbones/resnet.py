"""ResNet backbones (He et al., 2016), bottlenecks with the stride in the 3x3 convolution.

docs/specification.md, section 2.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasseg_jax.models.backbones.backbone import Backbone
from fasseg_jax.models.layers.image_conv import ImageConv
from fasseg_jax.models.layers.initializers import he_normal_fan_out
from fasseg_jax.models.layers.linear import PointwiseConv
from fasseg_jax.models.layers.norms import batch_norm
from fasseg_jax.ops.activations import relu
from fasseg_jax.ops.convolution import convolve

__all__ = ["ResNet"]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut, (B, h, w, C) -> (B, h/s, w/s, 4 * width) with s = `strides`."""

    width: int
    strides: int
    norm: str
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"], train: bool) -> Float[Array, "B h_out w_out 4*{self.width}"]:
        def pointwise(features, name, strides=1):
            return PointwiseConv(features, strides, False, self.dtype, he_normal_fan_out, name=name)

        def norm(name, x):
            return batch_norm(self.norm, self.dtype, name)(x, use_running_average=not train)

        y = relu(norm("norm1", pointwise(self.width, "conv1")(x)))
        y = nn.Conv(
            self.width,
            (3, 3),
            self.strides,
            padding=1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_normal_fan_out,
            conv_general_dilated=convolve,
            name="conv2",
        )(y)
        y = relu(norm("norm2", y))
        y = norm("norm3", pointwise(4 * self.width, "conv3")(y))
        if x.shape != y.shape:
            x = norm("shortcut_norm", pointwise(4 * self.width, "shortcut", self.strides)(x))
        return relu(x + y)


class ResNet(Backbone):
    """Normalized images -> [res2, res3, res4, res5] at strides 4, 8, 16, 32 with 4 * width * 2**i channels."""

    blocks: Sequence[int]
    width: int = 64
    norm: str = "frozen_batch_norm"
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> list[Float[Array, "B _ _ _"]]:
        x = ImageConv(
            self.width, 7, 2, 3, use_bias=False, dtype=self.dtype, kernel_init=he_normal_fan_out, name="stem_conv"
        )(images)
        x = relu(batch_norm(self.norm, self.dtype, "stem_norm")(x, use_running_average=not train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        block_type = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        features = []
        for stage, count in enumerate(self.blocks):
            for i in range(count):
                strides = 2 if stage > 0 and i == 0 else 1
                block = block_type(self.width * 2**stage, strides, self.norm, self.dtype, name=f"res{stage + 2}_{i}")
                x = block(x, train)
            features.append(x)
        return features

    def layers(self) -> list[list[str]]:
        """The stem, then each block."""
        blocks = [[f"res{stage + 2}_{i}"] for stage, count in enumerate(self.blocks) for i in range(count)]
        return [["stem_conv", "stem_norm"], *blocks]
