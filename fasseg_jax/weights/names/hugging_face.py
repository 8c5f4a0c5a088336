"""The names of transformers' Mask2Former.

These are the names in the files, which versions 4 and 5 of transformers share; version 5 renames some parameters
as it loads them. Transformers keeps queries, keys and values apart in Swin and in the decoder's self attention. Here
they are one parameter, so three rules share a path.
"""

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
    packed_rules,
)

__all__ = ["IGNORED_OF_HUGGING_FACE", "hugging_face_rules"]

ENCODER = "encoder.layers.{i}"
FLAX_ENCODER = "pixel_decoder/encoder_{i}"
PIXEL_DECODER_RULES = [
    *conv_rules("input_projections.{n}.0", "pixel_decoder/input_proj_{n}"),
    *norm_rules("input_projections.{n}.1", "pixel_decoder/input_norm_{n}"),
    Rule("level_embed", "pixel_decoder/level_embed"),
    *deformable_attention_rules(f"{ENCODER}.self_attn", f"{FLAX_ENCODER}/attention"),
    *norm_rules(f"{ENCODER}.self_attn_layer_norm", f"{FLAX_ENCODER}/norm1"),
    *norm_rules(f"{ENCODER}.final_layer_norm", f"{FLAX_ENCODER}/norm2"),
    *linear_rules(ENCODER + ".fc{n}", FLAX_ENCODER + "/linear{n}"),
    *conv_rules("adapter_1.0", "pixel_decoder/lateral"),
    *norm_rules("adapter_1.1", "pixel_decoder/lateral_norm"),
    *conv_rules("layer_1.0", "pixel_decoder/output_conv"),
    *norm_rules("layer_1.1", "pixel_decoder/output_norm"),
    *conv_rules("mask_projection", "pixel_decoder/mask_features"),
]

DECODER = "decoder.layers.{i}"
FLAX_DECODER = "decoder/layer_{i}"
DECODER_RULES = [
    Rule("queries_features.weight", "decoder/query_feat"),
    Rule("queries_embedder.weight", "decoder/query_embed"),
    Rule("level_embed.weight", "decoder/level_embed"),
    *attention_rules(f"{DECODER}.cross_attn", f"{FLAX_DECODER}/cross_attention"),
    *norm_rules(f"{DECODER}.cross_attn_layer_norm", f"{FLAX_DECODER}/cross_norm"),
    *packed_rules(
        [f"{DECODER}.self_attn.{part}_proj" for part in "qkv"],
        f"{FLAX_DECODER}/self_attention/in_proj_kernel",
        f"{FLAX_DECODER}/self_attention/in_proj_bias",
    ),
    *linear_rules(f"{DECODER}.self_attn.out_proj", f"{FLAX_DECODER}/self_attention/out_proj"),
    *norm_rules(f"{DECODER}.self_attn_layer_norm", f"{FLAX_DECODER}/self_norm"),
    *linear_rules(DECODER + ".fc{n}", FLAX_DECODER + "/linear{n}"),
    *norm_rules(f"{DECODER}.final_layer_norm", f"{FLAX_DECODER}/ffn_norm"),
    *norm_rules("decoder.layernorm", "decoder/decoder_norm"),
    *linear_rules("decoder.mask_predictor.mask_embedder.{n}.0", "decoder/mask_embed_{n}"),
]

# Not read: transformers computes them, only training uses them, or nothing does (the last norm of a Swin backbone).
IGNORED_OF_HUGGING_FACE = re.compile(
    r"^criterion\.empty_weight$|\.(num_batches_tracked|relative_position_index)$|\.encoder\.(swin\.)?layernorm\."
)


def hugging_face_rules(backbone: str) -> list[Rule]:
    """The table of a whole model; `backbone` is `config.model.backbone.kind`."""
    return [
        *below("model.pixel_level_module.encoder.", FOREIGN_BACKBONES[backbone].hugging_face),
        *below("model.pixel_level_module.decoder.", PIXEL_DECODER_RULES),
        *below("model.transformer_module.", DECODER_RULES),
        *linear_rules("class_predictor", "decoder/class_embed"),
    ]
