"""ResNet in other programs: Detectron2, torchvision, transformers."""

import re
from typing import Any

from ml_collections import ConfigDict

from fasseg_jax.weights.backbones.foreign import ForeignBackbone
from fasseg_jax.weights.names.rules import batch_norm_rules, conv_rules

__all__ = ["RESNET"]

DETECTRON2 = [
    *conv_rules("stem.conv1", "backbone/stem_conv"),
    *batch_norm_rules("stem.conv1.norm", "backbone/stem_norm"),
    *conv_rules("res{s}.{i}.conv{n}", "backbone/res{s}_{i}/conv{n}"),
    *batch_norm_rules("res{s}.{i}.conv{n}.norm", "backbone/res{s}_{i}/norm{n}"),
    *conv_rules("res{s}.{i}.shortcut", "backbone/res{s}_{i}/shortcut"),
    *batch_norm_rules("res{s}.{i}.shortcut.norm", "backbone/res{s}_{i}/shortcut_norm"),
]

TORCHVISION = [
    *conv_rules("conv1", "backbone/stem_conv"),
    *batch_norm_rules("bn1", "backbone/stem_norm"),
]
for _stage in (1, 2, 3, 4):
    _theirs, _ours = f"layer{_stage}.{{i}}", f"backbone/res{_stage + 1}_{{i}}"
    TORCHVISION += [
        *conv_rules(f"{_theirs}.conv{{n}}", f"{_ours}/conv{{n}}"),
        *batch_norm_rules(f"{_theirs}.bn{{n}}", f"{_ours}/norm{{n}}"),
        *conv_rules(f"{_theirs}.downsample.0", f"{_ours}/shortcut"),
        *batch_norm_rules(f"{_theirs}.downsample.1", f"{_ours}/shortcut_norm"),
    ]

HUGGING_FACE = [
    *conv_rules("embedder.embedder.convolution", "backbone/stem_conv"),
    *batch_norm_rules("embedder.embedder.normalization", "backbone/stem_norm"),
]
for _stage in range(4):
    _theirs, _ours = f"encoder.stages.{_stage}.layers.{{i}}", f"backbone/res{_stage + 2}_{{i}}"
    HUGGING_FACE += [
        *conv_rules(f"{_theirs}.shortcut.convolution", f"{_ours}/shortcut"),
        *batch_norm_rules(f"{_theirs}.shortcut.normalization", f"{_ours}/shortcut_norm"),
    ]
    for _conv in range(3):
        HUGGING_FACE += [
            *conv_rules(f"{_theirs}.layer.{_conv}.convolution", f"{_ours}/conv{_conv + 1}"),
            *batch_norm_rules(f"{_theirs}.layer.{_conv}.normalization", f"{_ours}/norm{_conv + 1}"),
        ]


def _read(fields: dict[str, Any], problems: list[str]) -> ConfigDict:
    width = fields.get("embedding_size", 64)
    widths = fields.get("hidden_sizes", [256, 512, 1024, 2048])
    if widths != _stage_widths(width):
        problems.append(f"backbone_config.hidden_sizes is {widths}; it must be 4, 8, 16, 32 times {width}")
    blocks = tuple(fields.get("depths", (3, 4, 6, 3)))
    return ConfigDict({"kind": "resnet", "blocks": blocks, "width": width, "norm": "frozen_batch_norm"})


def _describe(backbone: ConfigDict) -> dict[str, Any]:
    return {
        "embedding_size": backbone.width,
        "hidden_sizes": _stage_widths(backbone.width),
        "depths": list(backbone.blocks),
    }


def _stage_widths(width: int) -> list[int]:
    return [4 * width * 2**stage for stage in range(4)]


RESNET = ForeignBackbone(
    official=DETECTRON2,
    imagenet=(DETECTRON2, TORCHVISION, HUGGING_FACE),
    blocks=re.compile(r"(?:res|layer|encoder\.stages\.)(\d)\.(?:layers\.)?(\d+)\.(?:conv|layer\.)"),
    stems=("stem.conv1.weight", "conv1.weight", "embedder.embedder.convolution.weight"),
    classifier=re.compile(r"^(stem\.)?fc\.|^classifier\."),
    hugging_face=HUGGING_FACE,
    fixed={
        "num_channels": 3,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
    read=_read,
    describe=_describe,
    model_types=("resnet",),
)
