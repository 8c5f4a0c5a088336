"""Swin in other programs: Microsoft's, which the official FASeg and Mask2Former use, and transformers."""

import re
from typing import Any

from ml_collections import ConfigDict

from fasseg_jax.weights.backbones.foreign import ForeignBackbone
from fasseg_jax.weights.names.rules import Rule, conv_rules, linear_rules, norm_rules, packed_rules

__all__ = ["SWIN"]

OURS = "backbone/stage{s}_block{i}"

MICROSOFT = [
    *conv_rules("patch_embed.proj", "backbone/patch_embed"),
    *norm_rules("patch_embed.norm", "backbone/patch_norm"),
    *norm_rules("layers.{s}.blocks.{i}.norm{n}", OURS + "/norm{n}"),
    Rule("layers.{s}.blocks.{i}.attn.relative_position_bias_table", f"{OURS}/attention/relative_position_bias"),
    *linear_rules("layers.{s}.blocks.{i}.attn.qkv", f"{OURS}/attention/qkv"),
    *linear_rules("layers.{s}.blocks.{i}.attn.proj", f"{OURS}/attention/proj"),
    *linear_rules("layers.{s}.blocks.{i}.mlp.fc{n}", OURS + "/fc{n}"),
    *norm_rules("layers.{s}.downsample.norm", "backbone/stage{s}_merge/norm"),
    *linear_rules("layers.{s}.downsample.reduction", "backbone/stage{s}_merge/reduction"),
    *norm_rules("norm{s}", "backbone/norm{s}"),
]

THEIRS = "encoder.layers.{s}.blocks.{i}"
HUGGING_FACE = [
    *conv_rules("embeddings.patch_embeddings.projection", "backbone/patch_embed"),
    *norm_rules("embeddings.norm", "backbone/patch_norm"),
    *norm_rules(f"{THEIRS}.layernorm_before", f"{OURS}/norm1"),
    *norm_rules(f"{THEIRS}.layernorm_after", f"{OURS}/norm2"),
    Rule(f"{THEIRS}.attention.self.relative_position_bias_table", f"{OURS}/attention/relative_position_bias"),
    *packed_rules(
        [f"{THEIRS}.attention.self.{part}" for part in ("query", "key", "value")],
        f"{OURS}/attention/qkv/kernel",
        f"{OURS}/attention/qkv/bias",
    ),
    *linear_rules(f"{THEIRS}.attention.output.dense", f"{OURS}/attention/proj"),
    *linear_rules(f"{THEIRS}.intermediate.dense", f"{OURS}/fc1"),
    *linear_rules(f"{THEIRS}.output.dense", f"{OURS}/fc2"),
    *norm_rules("encoder.layers.{s}.downsample.norm", "backbone/stage{s}_merge/norm"),
    *linear_rules("encoder.layers.{s}.downsample.reduction", "backbone/stage{s}_merge/reduction"),
]
for _stage in range(4):
    HUGGING_FACE += norm_rules(f"hidden_states_norms.stage{_stage + 1}", f"backbone/norm{_stage}")


def _read(fields: dict[str, Any], problems: list[str]) -> ConfigDict:
    mlp_ratio = fields.get("mlp_ratio", 4.0)
    if mlp_ratio != int(mlp_ratio):
        problems.append(f"backbone_config.mlp_ratio is {mlp_ratio}; it must be a whole number")
    return ConfigDict(
        {
            "kind": "swin",
            "embed_dim": fields.get("embed_dim", 96),
            "blocks": tuple(fields.get("depths", (2, 2, 6, 2))),
            "heads": tuple(fields.get("num_heads", (3, 6, 12, 24))),
            "window": fields.get("window_size", 7),
            "mlp_ratio": int(mlp_ratio),
            "drop_path": float(fields.get("drop_path_rate", 0.1)),
        }
    )


def _describe(backbone: ConfigDict) -> dict[str, Any]:
    return {
        "embed_dim": backbone.embed_dim,
        "depths": list(backbone.blocks),
        "num_heads": list(backbone.heads),
        "window_size": backbone.window,
        "mlp_ratio": float(backbone.mlp_ratio),
        "drop_path_rate": backbone.drop_path,
    }


SWIN = ForeignBackbone(
    official=MICROSOFT,
    imagenet=(MICROSOFT, HUGGING_FACE),
    blocks=re.compile(r"(?:encoder\.)?layers\.(\d)\.blocks\.(\d+)\."),
    stems=("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight"),
    classifier=re.compile(r"^(head|norm|layernorm|classifier)\."),
    not_in_imagenet=re.compile(r"^backbone/norm\d/"),  # the norms of the four outputs
    hugging_face=HUGGING_FACE,
    fixed={
        "patch_size": 4,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
    },
    read=_read,
    describe=_describe,
    model_types=("swin",),
)
