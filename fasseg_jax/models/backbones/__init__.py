"""Backbones: images -> feature maps at strides 4, 8, 16 and 32.

A new backbone is a file beside this one and a line in `BACKBONES`. Its Flax module takes the fields of
`config.model.backbone` (but `kind`, which is its key here), `remat` and `dtype`. It is called as
`backbone(images, train)`, with normalized images (B, H, W, 3), and returns the four maps [res2, res3, res4, res5]. Two
class attributes tell what others need to know of it:

- `size_divisor`: H and W of its images must be multiples of this, at least 32.
- `choices`: the values of those fields that are one of a few words.
"""

from fasseg_jax.models.backbones.resnet import ResNet
from fasseg_jax.models.backbones.swin import Swin

__all__ = ["BACKBONES"]

BACKBONES = {"resnet": ResNet, "swin": Swin}
