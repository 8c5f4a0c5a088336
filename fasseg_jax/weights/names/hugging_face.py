"""The table of names of `transformers`' Mask2Former: where its parameters are found among the Flax variables.

Names are those of the files, which versions 4 and 5 of transformers share, whatever version 5 calls the parameters once
they are loaded. Queries, keys and values, apart there in Swin and in the decoder's self attention, are packed into one
parameter here: three rules share a path.
"""

import re
from collections.abc import Iterable

from fasseg_jax.weights.names.rules import (
    Rule,
    attention_rules,
    batch_norm_rules,
    below,
    conv_rules,
    deformable_attention_rules,
    linear_rules,
    norm_rules,
)

__all__ = ["HUGGING_FACE_RULES", "IGNORED_OF_HUGGING_FACE"]


def packed_rules(names: Iterable[str], path: str, kernel: str = "/kernel", bias: str = "/bias") -> list[Rule]:
    """Rules of linear layers that are one at the path, side by side."""
    names = list(names)
    return [
        rule
        for i, name in enumerate(names)
        for rule in (
            Rule(f"{name}.weight", path + kernel, (1, 0), (i, len(names))),
            Rule(f"{name}.bias", path + bias, None, (i, len(names))),
        )
    ]


SWIN_BLOCK, FLAX_BLOCK = "encoder.layers.{s}.blocks.{i}", "backbone/stage{s}_block{i}"
BACKBONE_RULES = [
    *conv_rules("embeddings.patch_embeddings.projection", "backbone/patch_embed"),
    *norm_rules("embeddings.norm", "backbone/patch_norm"),
    *norm_rules(f"{SWIN_BLOCK}.layernorm_before", f"{FLAX_BLOCK}/norm1"),
    *norm_rules(f"{SWIN_BLOCK}.layernorm_after", f"{FLAX_BLOCK}/norm2"),
    Rule(
        f"{SWIN_BLOCK}.attention.self.relative_position_bias_table",
        f"{FLAX_BLOCK}/attention/relative_position_bias",
    ),
    *packed_rules(
        (f"{SWIN_BLOCK}.attention.self.{part}" for part in ("query", "key", "value")), f"{FLAX_BLOCK}/attention/qkv"
    ),
    *linear_rules(f"{SWIN_BLOCK}.attention.output.dense", f"{FLAX_BLOCK}/attention/proj"),
    *linear_rules(f"{SWIN_BLOCK}.intermediate.dense", f"{FLAX_BLOCK}/fc1"),
    *linear_rules(f"{SWIN_BLOCK}.output.dense", f"{FLAX_BLOCK}/fc2"),
    *norm_rules("encoder.layers.{s}.downsample.norm", "backbone/stage{s}_merge/norm"),
    *linear_rules("encoder.layers.{s}.downsample.reduction", "backbone/stage{s}_merge/reduction"),
    *conv_rules("embedder.embedder.convolution", "backbone/stem_conv"),
    *batch_norm_rules("embedder.embedder.normalization", "backbone/stem_norm"),
]
for _stage in range(4):
    _layer, _block = f"encoder.stages.{_stage}.layers." + "{i}", f"backbone/res{_stage + 2}" + "_{i}"
    BACKBONE_RULES += [
        *norm_rules(f"hidden_states_norms.stage{_stage + 1}", f"backbone/norm{_stage}"),
        *conv_rules(f"{_layer}.shortcut.convolution", f"{_block}/shortcut"),
        *batch_norm_rules(f"{_layer}.shortcut.normalization", f"{_block}/shortcut_norm"),
    ]
    for _i in range(3):
        BACKBONE_RULES += [
            *conv_rules(f"{_layer}.layer.{_i}.convolution", f"{_block}/conv{_i + 1}"),
            *batch_norm_rules(f"{_layer}.layer.{_i}.normalization", f"{_block}/norm{_i + 1}"),
        ]

ENCODER, FLAX_ENCODER = "encoder.layers.{i}", "pixel_decoder/encoder_{i}"
PIXEL_DECODER_RULES = [
    *conv_rules("input_projections.{n}.0", "pixel_decoder/input_proj_{n}"),
    *norm_rules("input_projections.{n}.1", "pixel_decoder/input_norm_{n}"),
    Rule("level_embed", "pixel_decoder/level_embed"),
    *deformable_attention_rules(f"{ENCODER}.self_attn", f"{FLAX_ENCODER}/attention"),
    *norm_rules(f"{ENCODER}.self_attn_layer_norm", f"{FLAX_ENCODER}/norm1"),
    *norm_rules(f"{ENCODER}.final_layer_norm", f"{FLAX_ENCODER}/norm2"),
    *linear_rules(f"{ENCODER}.fc" + "{n}", f"{FLAX_ENCODER}/linear" + "{n}"),
    *conv_rules("adapter_1.0", "pixel_decoder/lateral"),
    *norm_rules("adapter_1.1", "pixel_decoder/lateral_norm"),
    *conv_rules("layer_1.0", "pixel_decoder/output_conv"),
    *norm_rules("layer_1.1", "pixel_decoder/output_norm"),
    *conv_rules("mask_projection", "pixel_decoder/mask_features"),
]

DECODER, FLAX_DECODER = "decoder.layers.{i}", "decoder/layer_{i}"
DECODER_RULES = [
    Rule("queries_features.weight", "decoder/query_feat"),
    Rule("queries_embedder.weight", "decoder/query_embed"),
    Rule("level_embed.weight", "decoder/level_embed"),
    *attention_rules(f"{DECODER}.cross_attn", f"{FLAX_DECODER}/cross_attention"),
    *norm_rules(f"{DECODER}.cross_attn_layer_norm", f"{FLAX_DECODER}/cross_norm"),
    *packed_rules(
        (f"{DECODER}.self_attn.{part}_proj" for part in "qkv"),
        f"{FLAX_DECODER}/self_attention/",
        "in_proj_kernel",
        "in_proj_bias",
    ),
    *linear_rules(f"{DECODER}.self_attn.out_proj", f"{FLAX_DECODER}/self_attention/out_proj"),
    *norm_rules(f"{DECODER}.self_attn_layer_norm", f"{FLAX_DECODER}/self_norm"),
    *linear_rules(f"{DECODER}.fc" + "{n}", f"{FLAX_DECODER}/linear" + "{n}"),
    *norm_rules(f"{DECODER}.final_layer_norm", f"{FLAX_DECODER}/ffn_norm"),
    *norm_rules("decoder.layernorm", "decoder/decoder_norm"),
    *linear_rules("decoder.mask_predictor.mask_embedder.{n}.0", "decoder/mask_embed_{n}"),
]

HUGGING_FACE_RULES = [
    *below("model.pixel_level_module.encoder.", BACKBONE_RULES),
    *below("model.pixel_level_module.decoder.", PIXEL_DECODER_RULES),
    *below("model.transformer_module.", DECODER_RULES),
    *linear_rules("class_predictor", "decoder/class_embed"),
]

# Computed anew, of use to training alone, or (the last norm of a Swin transformer) never used: not read.
IGNORED_OF_HUGGING_FACE = re.compile(
    r"^criterion\.empty_weight$|\.(num_batches_tracked|relative_position_index)$|\.encoder\.(swin\.)?layernorm\."
)
