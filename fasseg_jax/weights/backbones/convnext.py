"""ConvNeXt in other programs: Meta's, timm and transformers; V1 and V2 have the same names.

The weights of V1 that Meta released are under the MIT license, those of V2 under CC BY-NC 4.0.
"""

import re
from typing import Any

from ml_collections import ConfigDict

from fasseg_jax.weights.backbones.foreign import ForeignBackbone
from fasseg_jax.weights.names.rules import Rule, conv_rules, linear_rules, norm_rules

__all__ = ["CONVNEXT"]

OURS = "backbone/stage{s}_block{i}"


def _block_rules(theirs: str, depthwise: str, norm: str, mlp: tuple[str, str], gamma: str) -> list[Rule]:
    """Rules of a block, without those of V2's response norm."""
    return [
        *conv_rules(f"{theirs}.{depthwise}", f"{OURS}/depthwise"),
        *norm_rules(f"{theirs}.{norm}", f"{OURS}/norm"),
        *linear_rules(f"{theirs}.{mlp[0]}", f"{OURS}/fc1"),
        *linear_rules(f"{theirs}.{mlp[1]}", f"{OURS}/fc2"),
        Rule(f"{theirs}.{gamma}", f"{OURS}/gamma"),
    ]


def _response_rules(weight: str, bias: str, leading: int) -> list[Rule]:
    return [
        Rule(weight, f"{OURS}/response_norm/scale", leading=leading),
        Rule(bias, f"{OURS}/response_norm/bias", leading=leading),
    ]


def _downsampling_rules(theirs: str) -> list[Rule]:
    return [
        *norm_rules(f"{theirs}.0", "backbone/stage{s}_downsample_norm"),
        *conv_rules(f"{theirs}.1", "backbone/stage{s}_downsample"),
    ]


META = [
    *conv_rules("downsample_layers.0.0", "backbone/patch_embed"),
    *norm_rules("downsample_layers.0.1", "backbone/patch_norm"),
    *_downsampling_rules("downsample_layers.{s}"),
    *_block_rules("stages.{s}.{i}", "dwconv", "norm", ("pwconv1", "pwconv2"), "gamma"),
    *_response_rules("stages.{s}.{i}.grn.gamma", "stages.{s}.{i}.grn.beta", 3),
    *norm_rules("norm{s}", "backbone/norm{s}"),
]

TIMM = [
    *conv_rules("stem.0", "backbone/patch_embed"),
    *norm_rules("stem.1", "backbone/patch_norm"),
    *_downsampling_rules("stages.{s}.downsample"),
    *_block_rules("stages.{s}.blocks.{i}", "conv_dw", "norm", ("mlp.fc1", "mlp.fc2"), "gamma"),
    *_response_rules("stages.{s}.blocks.{i}.mlp.grn.weight", "stages.{s}.blocks.{i}.mlp.grn.bias", 0),
]

THEIRS = "encoder.stages.{s}.layers.{i}"
HUGGING_FACE = [
    *conv_rules("embeddings.patch_embeddings", "backbone/patch_embed"),
    *norm_rules("embeddings.layernorm", "backbone/patch_norm"),
    *_downsampling_rules("encoder.stages.{s}.downsampling_layer"),
    *_block_rules(THEIRS, "dwconv", "layernorm", ("pwconv1", "pwconv2"), "layer_scale_parameter"),
    *_response_rules(f"{THEIRS}.grn.weight", f"{THEIRS}.grn.bias", 3),
]
for _stage in range(4):
    HUGGING_FACE += norm_rules(f"hidden_states_norms.stage{_stage + 1}", f"backbone/norm{_stage}")


def _read(fields: dict[str, Any], problems: list[str]) -> ConfigDict:
    widths = list(fields.get("hidden_sizes", _stage_widths(96)))
    if widths != _stage_widths(widths[0]):
        problems.append(f"backbone_config.hidden_sizes is {widths}; each must be twice the one before")
    version = 2 if fields["model_type"] == "convnextv2" else 1
    if version == 1 and not fields.get("layer_scale_init_value", 1e-6) > 0:
        problems.append("backbone_config.layer_scale_init_value is not above 0; networks without it are not supported")
    return ConfigDict(
        {
            "kind": "convnext",
            "blocks": tuple(fields.get("depths", (3, 3, 9, 3))),
            "width": widths[0],
            "version": version,
            "drop_path": float(fields.get("drop_path_rate", 0.0)),
        }
    )


def _describe(backbone: ConfigDict) -> dict[str, Any]:
    return {
        "model_type": "convnextv2" if backbone.version == 2 else "convnext",
        "hidden_sizes": _stage_widths(backbone.width),
        "depths": list(backbone.blocks),
        "drop_path_rate": backbone.drop_path,
    }


def _stage_widths(width: int) -> list[int]:
    return [width * 2**stage for stage in range(4)]


CONVNEXT = ForeignBackbone(
    official=META,
    imagenet=(META, TIMM, HUGGING_FACE),
    blocks=re.compile(r"(?:encoder\.)?stages\.(\d)\.(?:blocks\.|layers\.)?(\d+)\.(?:dwconv|conv_dw)\."),
    stems=("downsample_layers.0.0.weight", "stem.0.weight", "embeddings.patch_embeddings.weight"),
    classifier=re.compile(r"^(head|norm|head\.norm|head\.fc|layernorm|classifier)\.(weight|bias)$"),
    not_in_imagenet=re.compile(r"^backbone/norm\d/"),  # the norms of the four outputs
    hugging_face=HUGGING_FACE,
    fixed={"patch_size": 4, "num_channels": 3, "num_stages": 4, "hidden_act": "gelu"},
    read=_read,
    describe=_describe,
    model_types=("convnext", "convnextv2"),
)
