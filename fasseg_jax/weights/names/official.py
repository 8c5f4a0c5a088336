"""The names of the official programs, FASeg and Mask2Former."""

import re

from fasseg_jax.weights.backbones import FOREIGN_BACKBONES
from fasseg_jax.weights.names.rules import (
    Rule,
    attention_rules,
    below,
    conv_rules,
    deformable_attention_rules,
    linear_rules,
    norm_rules,
)

__all__ = ["IGNORED", "RENAMED", "official_rules"]

PIXEL_DECODER_RULES = [
    *conv_rules("input_proj.{n}.0", "pixel_decoder/input_proj_{n}"),
    *norm_rules("input_proj.{n}.1", "pixel_decoder/input_norm_{n}"),
    *conv_rules("pos_linear.{n}", "pixel_decoder/pos_conv_{n}"),
    Rule("transformer.level_embed", "pixel_decoder/level_embed"),
    *deformable_attention_rules("transformer.encoder.layers.{i}.self_attn", "pixel_decoder/encoder_{i}/attention"),
    *norm_rules("transformer.encoder.layers.{i}.norm{n}", "pixel_decoder/encoder_{i}/norm{n}"),
    *linear_rules("transformer.encoder.layers.{i}.linear{n}", "pixel_decoder/encoder_{i}/linear{n}"),
    *conv_rules("adapter_1", "pixel_decoder/lateral"),
    *norm_rules("adapter_1.norm", "pixel_decoder/lateral_norm"),
    *conv_rules("layer_1", "pixel_decoder/output_conv"),
    *norm_rules("layer_1.norm", "pixel_decoder/output_norm"),
    *conv_rules("mask_features", "pixel_decoder/mask_features"),
]

DECODER_RULES = [
    Rule("query_feat.weight", "decoder/query_feat"),
    Rule("query_embed.weight", "decoder/query_embed"),
    Rule("level_embed.weight", "decoder/level_embed"),
    *attention_rules("transformer_cross_attention_layers.{i}.multihead_attn", "decoder/layer_{i}/cross_attention"),
    *norm_rules("transformer_cross_attention_layers.{i}.norm", "decoder/layer_{i}/cross_norm"),
    *attention_rules("transformer_self_attention_layers.{i}.self_attn", "decoder/layer_{i}/self_attention"),
    *norm_rules("transformer_self_attention_layers.{i}.norm", "decoder/layer_{i}/self_norm"),
    *linear_rules("transformer_ffn_layers.{i}.linear{n}", "decoder/layer_{i}/linear{n}"),
    *norm_rules("transformer_ffn_layers.{i}.norm", "decoder/layer_{i}/ffn_norm"),
    *norm_rules("decoder_norm", "decoder/decoder_norm"),
    *linear_rules("class_embed", "decoder/class_embed"),
    *linear_rules("mask_embed.layers.{n}", "decoder/mask_embed_{n}"),
    *linear_rules("adapt_pos2d.0", "decoder/adapt_pos2d_0"),
    *linear_rules("adapt_pos2d.2", "decoder/adapt_pos2d_1"),
]

# Names in older files of Mask2Former and FASeg -> the names of today.
RENAMED = [
    (re.compile(r"^(sem_seg_head\.predictor\.)static_query\b"), r"\1query_feat"),
    (re.compile(r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)"), "sem_seg_head.pixel_decoder."),
]

# Not read: the model computes them, or only training uses them.
IGNORED = re.compile(
    r"^criterion\.empty_weight$|^pixel_(mean|std)$|(^|\.)(num_batches_tracked|relative_position_index|attn_mask)$"
)


def official_rules(backbone: str) -> list[Rule]:
    """The table of a whole model; `backbone` is `config.model.backbone.kind`."""
    return [
        *below("backbone.", FOREIGN_BACKBONES[backbone].official),
        *below("sem_seg_head.pixel_decoder.", PIXEL_DECODER_RULES),
        *below("sem_seg_head.predictor.", DECODER_RULES),
    ]
