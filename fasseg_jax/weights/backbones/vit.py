"""Vision Transformers of DINOv2 and DINOv3 in other programs: Meta's, timm and transformers.

DINOv2's weights are under the Apache 2.0 license, DINOv3's under the DINOv3 License.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.models.backbones.vit import ROPE_BASE, TABLE
from fasseg_jax.weights.backbones.foreign import ForeignBackbone, check_fixed
from fasseg_jax.weights.names.rules import Rule, conv_rules, linear_rules, norm_rules, packed_rules

__all__ = ["VIT"]

OURS = "backbone/block{i}"
PREFIX = "backbone_config."


def _common_rules(block: str, projection: str) -> list[Rule]:
    return [
        *norm_rules(f"{block}.norm1", f"{OURS}/norm1"),
        *norm_rules(f"{block}.norm2", f"{OURS}/norm2"),
        *linear_rules(f"{block}.{projection}", f"{OURS}/attention/proj"),
    ]


def _mlp_rules(first: str, second: str) -> list[Rule]:
    return [*linear_rules(first, f"{OURS}/fc1"), *linear_rules(second, f"{OURS}/fc2")]


def _gated_rules(first: list[str], second: str) -> list[Rule]:
    """Rules of a gated MLP; `first` is one layer of gate and value, or one for each."""
    kernel, bias = f"{OURS}/gate_and_value/kernel", f"{OURS}/gate_and_value/bias"
    return [*packed_rules(first, kernel, bias), *linear_rules(second, f"{OURS}/gated_out")]


def _scale_rules(first: str, second: str) -> list[Rule]:
    return [Rule(first, f"{OURS}/scale1/gamma"), Rule(second, f"{OURS}/scale2/gamma")]


def _embedding_rules(below: str, registers: str, positions: str) -> list[Rule]:
    return [
        Rule(f"{below}cls_token", "backbone/class_token", leading=2),
        Rule(f"{below}{registers}", "backbone/registers", leading=1),
        Rule(f"{below}{positions}", "backbone/position_table", leading=1),
    ]


def _meta_rules(registers: str) -> list[Rule]:
    """Rules of Meta's programs and timm, without the MLP and the layer scale."""
    return [
        *_embedding_rules("", registers, "pos_embed"),
        *conv_rules("patch_embed.proj", "backbone/patches"),
        *_common_rules("blocks.{i}", "attn.proj"),
        Rule("blocks.{i}.attn.qkv.weight", f"{OURS}/attention/qkv_kernel", (1, 0)),
        Rule("blocks.{i}.attn.qkv.bias", f"{OURS}/attention/qkv_bias"),
        *norm_rules("norm", "backbone/norm"),
    ]


PLAIN = _mlp_rules("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc2")
SCALES = _scale_rules("blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma")
DINOV2 = [
    *_meta_rules("register_tokens"),
    *PLAIN,
    *_gated_rules(["blocks.{i}.mlp.w12"], "blocks.{i}.mlp.w3"),
    *SCALES,
]
DINOV3 = [
    *_meta_rules("storage_tokens"),
    *PLAIN,
    *_gated_rules(["blocks.{i}.mlp.w1", "blocks.{i}.mlp.w2"], "blocks.{i}.mlp.w3"),
    *SCALES,
]
TIMM_DINOV2 = [*_meta_rules("reg_token"), *PLAIN, *SCALES]
TIMM_SCALES = _scale_rules("blocks.{i}.gamma_1", "blocks.{i}.gamma_2")
TIMM_DINOV3 = [*_meta_rules("reg_token"), *PLAIN, *TIMM_SCALES]
TIMM_DINOV3_GATED = [
    *_meta_rules("reg_token"),
    *_gated_rules(["blocks.{i}.mlp.fc1_g", "blocks.{i}.mlp.fc1_x"], "blocks.{i}.mlp.fc2"),
    *TIMM_SCALES,
]

THEIRS = "encoder.layer.{i}"
HUGGING_FACE_DINOV2 = [
    *_embedding_rules("embeddings.", "register_tokens", "position_embeddings"),
    *conv_rules("embeddings.patch_embeddings.projection", "backbone/patches"),
    *_common_rules(THEIRS, "attention.output.dense"),
    *packed_rules(
        [f"{THEIRS}.attention.attention.{part}" for part in ("query", "key", "value")],
        f"{OURS}/attention/qkv_kernel",
        f"{OURS}/attention/qkv_bias",
    ),
    *_mlp_rules(f"{THEIRS}.mlp.fc1", f"{THEIRS}.mlp.fc2"),
    *_gated_rules([f"{THEIRS}.mlp.weights_in"], f"{THEIRS}.mlp.weights_out"),
    *_scale_rules(f"{THEIRS}.layer_scale1.lambda1", f"{THEIRS}.layer_scale2.lambda1"),
    *norm_rules("layernorm", "backbone/norm"),
]


def _dinov3_of_transformers(theirs: str, mlp: list[Rule]) -> list[Rule]:
    """The table of transformers' DINOv3; keys have no bias, so that of queries and values has two parts."""
    attention = f"{theirs}.attention"
    kernels = [
        Rule(f"{attention}.{part}_proj.weight", f"{OURS}/attention/qkv_kernel", (1, 0), (i, 3))
        for i, part in enumerate("qkv")
    ]
    biases = [
        Rule(f"{attention}.{part}_proj.bias", f"{OURS}/attention/qkv_bias", None, (i, 2)) for i, part in enumerate("qv")
    ]
    return [
        *_embedding_rules("embeddings.", "register_tokens", "position_embeddings"),
        *conv_rules("embeddings.patch_embeddings", "backbone/patches"),
        *_common_rules(theirs, "attention.o_proj"),
        *kernels,
        *biases,
        *mlp,
        *_scale_rules(f"{theirs}.layer_scale1.lambda1", f"{theirs}.layer_scale2.lambda1"),
        *norm_rules("norm", "backbone/norm"),
    ]


def _tables_of_dinov3() -> list[list[Rule]]:
    """Files have the names of version 4 of transformers; version 5 puts "model." before them as it loads them."""
    tables = []
    for theirs in ("layer.{i}", "model.layer.{i}"):
        mlp = f"{theirs}.mlp"
        tables += [
            _dinov3_of_transformers(theirs, _mlp_rules(f"{mlp}.up_proj", f"{mlp}.down_proj")),
            _dinov3_of_transformers(theirs, _gated_rules([f"{mlp}.gate_proj", f"{mlp}.up_proj"], f"{mlp}.down_proj")),
        ]
    return tables


PYRAMID = [
    *norm_rules("pyramid.four_norm", "backbone/pyramid/four_norm"),
    *(
        rule
        for name in ("four_0", "four_1", "two")  # of a ConvTranspose2d: (in, out, h, w) -> (h, w, in, out)
        for rule in (
            Rule(f"pyramid.{name}.weight", f"backbone/pyramid/{name}/kernel", (2, 3, 0, 1)),
            Rule(f"pyramid.{name}.bias", f"backbone/pyramid/{name}/bias"),
        )
    ),
]


def _prepare(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out what other programs store but do not use, and check that they do not use it.

    Raises:
      ValueError: a mask or a table of frequencies is another than that of the released networks.
    """
    prepared = dict(state_dict)
    for name in [name for name in state_dict if name.endswith(".attn.qkv.bias_mask")]:
        mask, bias = prepared.pop(name), prepared.get(name.removesuffix("_mask"))
        third = mask.size // 3
        if bias is None or bias.shape != (3 * third,) or not np.array_equal(mask, np.repeat([1, 0, 1], third)):
            raise ValueError(f"{name} is not that of a DINOv3, which masks the bias of the keys and nothing else")
        prepared[name.removesuffix("_mask")] = np.concatenate([bias[:third], bias[2 * third :]])
    periods = prepared.pop("rope_embed.periods", None)
    if periods is not None:
        expected = ROPE_BASE ** (np.arange(periods.size) / max(periods.size, 1))
        if not periods.size or not np.allclose(periods.astype(np.float32).ravel(), expected, rtol=0.01):
            raise ValueError(f"rope_embed.periods are not those of a DINOv3, powers of {ROPE_BASE:g}")
    table = prepared.get("pos_embed")
    if table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        # timm's has no position of the class token where there are registers: it is part of the token.
        prepared["pos_embed"] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    return prepared


def _read(fields: dict[str, Any], problems: list[str]) -> ConfigDict:
    version = 3 if fields["model_type"] == "dinov3_vit" else 2
    width = fields.get("hidden_size", 384 if version == 3 else 768)
    gated = fields.get("use_gated_mlp" if version == 3 else "use_swiglu_ffn", False)
    read = _read_dinov3 if version == 3 else _read_dinov2
    common = {
        "kind": "vit",
        "version": version,
        "width": width,
        "depth": fields.get("num_hidden_layers", 12),
        "num_heads": fields.get("num_attention_heads", 6 if version == 3 else 12),
        "gated": gated,
        "drop_path": float(fields.get("drop_path_rate", 0.0)),
    }
    return ConfigDict(common | read(fields, width, gated, problems))


def _read_dinov2(fields: dict[str, Any], width: int, gated: bool, problems: list[str]) -> dict[str, Any]:
    registers = fields["model_type"] == "dinov2_with_registers"
    fields = {"patch_size": 16 if registers else 14, "image_size": 224} | fields  # theirs where the file has none
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "patch_size": 14, "image_size": 14 * TABLE}
    check_fixed(fields, fixed, PREFIX, problems)
    mlp_width = int(width * fields.get("mlp_ratio", 4))
    return {
        "patch_size": 14,
        "mlp_width": (int(mlp_width * 2 / 3) + 7) // 8 * 8 if gated else mlp_width,
        "attention_bias": fields.get("qkv_bias", True),
        "num_registers": fields.get("num_register_tokens", 4) if registers else 0,
    }


def _read_dinov3(fields: dict[str, Any], width: int, gated: bool, problems: list[str]) -> dict[str, Any]:
    bias = fields.get("query_bias", True)
    fixed = {"hidden_act": "silu" if gated else "gelu", "layer_norm_eps": 1e-5, "rope_theta": ROPE_BASE}
    fixed |= {"patch_size": 16, "key_bias": False, "value_bias": bias, "proj_bias": True, "mlp_bias": True}
    check_fixed(fields, fixed, PREFIX, problems)
    return {
        "patch_size": 16,
        "mlp_width": fields.get("intermediate_size", 1536),
        "attention_bias": bias,
        "num_registers": fields.get("num_register_tokens", 0),
    }


def _describe(backbone: ConfigDict) -> dict[str, Any]:
    del backbone  # transformers' Mask2Former cannot have it
    return {}


VIT = ForeignBackbone(
    official=[*DINOV2, *PYRAMID],
    imagenet=(
        *(DINOV2, DINOV3, TIMM_DINOV2, TIMM_DINOV3, TIMM_DINOV3_GATED, HUGGING_FACE_DINOV2),
        *_tables_of_dinov3(),
    ),
    blocks=re.compile(r"()(?:blocks|(?:encoder\.|model\.)?layer)\.(\d+)\."),
    stems=(
        "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.weight",
        "embeddings.patch_embeddings.weight",
    ),
    classifier=re.compile(r"^(head|classifier|local_cls_norm|fc_norm)\.|(^|\.)mask_token$"),
    prepare=_prepare,
    num_stages=1,
    not_in_imagenet=re.compile(r"^backbone/pyramid/"),
    hugging_face=(),
    fixed={"num_channels": 3},
    read=_read,
    describe=_describe,
    model_types=("dinov2", "dinov2_with_registers", "dinov3_vit"),
)
