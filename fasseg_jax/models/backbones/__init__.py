"""Backbones. A new one is a file beside this one, with a subclass of `Backbone`, and a line in `BACKBONES`."""

from fasseg_jax.models.backbones.backbone import Backbone
from fasseg_jax.models.backbones.convnext import ConvNeXt
from fasseg_jax.models.backbones.resnet import ResNet
from fasseg_jax.models.backbones.swin import Swin
from fasseg_jax.models.backbones.vit import ViT

__all__ = ["BACKBONES", "Backbone"]

BACKBONES: dict[str, type[Backbone]] = {"convnext": ConvNeXt, "resnet": ResNet, "swin": Swin, "vit": ViT}
