"""The backbones of other programs, by the value of `config.model.backbone.kind`, a file each."""

from fasseg_jax.weights.backbones.foreign import ForeignBackbone
from fasseg_jax.weights.backbones.resnet import RESNET
from fasseg_jax.weights.backbones.swin import SWIN

__all__ = ["FOREIGN_BACKBONES", "ForeignBackbone"]

FOREIGN_BACKBONES: dict[str, ForeignBackbone] = {"resnet": RESNET, "swin": SWIN}
