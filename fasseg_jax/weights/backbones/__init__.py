"""The backbones of other programs, by the value of `config.model.backbone.kind`, a file each."""

from fasseg_jax.weights.backbones.convnext import CONVNEXT
from fasseg_jax.weights.backbones.foreign import ForeignBackbone
from fasseg_jax.weights.backbones.resnet import RESNET
from fasseg_jax.weights.backbones.swin import SWIN
from fasseg_jax.weights.backbones.vit import VIT

__all__ = ["FOREIGN_BACKBONES", "MODEL_TYPES", "ForeignBackbone", "kind_of"]

FOREIGN_BACKBONES: dict[str, ForeignBackbone] = {
    "convnext": CONVNEXT,
    "resnet": RESNET,
    "swin": SWIN,
    "vit": VIT,
}

# The values of transformers' `model_type` that are known here.
MODEL_TYPES = tuple(name for foreign in FOREIGN_BACKBONES.values() for name in foreign.model_types)


def kind_of(model_type: object) -> str | None:
    """The kind of backbone that transformers calls `model_type`; None if it is not known here."""
    return next((kind for kind, foreign in FOREIGN_BACKBONES.items() if model_type in foreign.model_types), None)
