"""The table of names: where each parameter of the PyTorch programs is found among the Flax variables.

A rule says of a parameter: its PyTorch name, its path among the Flax variables, and the order that its axes take there.
`{s}` and the like stand for a number, the same on both sides, so that the table reads in both directions. Paths leave
the collection out ("params" or "batch_stats"): it follows from the model, in which frozen batch norm keeps all of its
values in "batch_stats".
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

__all__ = [
    "BACKBONE_RULES",
    "IGNORED",
    "IGNORED_OF_BACKBONES",
    "MODEL_RULES",
    "RENAMED",
    "TORCHVISION_RULES",
    "Rule",
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of the table: PyTorch's `name`, the Flax `path`, and PyTorch's axes in Flax's order (None: as is)."""

    name: str
    path: str
    axes: tuple[int, ...] | None = None

    def path_of(self, name: str) -> str | None:
        """The path of a PyTorch name, None if the rule is not about it."""
        return _translate(name, self.name, self.path)

    def name_of(self, path: str) -> str | None:
        """The PyTorch name of a path, None if the rule is not about it."""
        return _translate(path, self.path, self.name)


def _translate(text: str, source: str, target: str) -> str | None:
    match = _pattern(source).fullmatch(text)
    return match and target.format(**match.groupdict())


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _conv(name: str, path: str) -> list[Rule]:
    # (out, in, h, w) -> (h, w, in, out); depthwise: (C, 1, h, w) -> (h, w, 1, C).
    return [Rule(f"{name}.weight", f"{path}/kernel", (2, 3, 1, 0)), Rule(f"{name}.bias", f"{path}/bias")]


def _linear(name: str, path: str) -> list[Rule]:
    # (out, in) -> (in, out)
    return [Rule(f"{name}.weight", f"{path}/kernel", (1, 0)), Rule(f"{name}.bias", f"{path}/bias")]


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


def _batch_norm(name: str, path: str) -> list[Rule]:
    return [
        *_norm(name, path),
        Rule(f"{name}.running_mean", f"{path}/mean"),
        Rule(f"{name}.running_var", f"{path}/var"),
    ]


def _attention(name: str, path: str) -> list[Rule]:
    # PyTorch's MultiheadAttention; the packed (3C, C) matrix of q, k, v -> (C, 3C).
    return [
        Rule(f"{name}.in_proj_weight", f"{path}/in_proj_kernel", (1, 0)),
        Rule(f"{name}.in_proj_bias", f"{path}/in_proj_bias"),
        *_linear(f"{name}.out_proj", f"{path}/out_proj"),
    ]


def _deformable_attention(name: str, path: str) -> list[Rule]:
    parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [rule for part in parts for rule in _linear(f"{name}.{part}", f"{path}/{part}")]


BACKBONE_RULES = [
    # ResNet, Detectron2's names
    *_conv("stem.conv1", "backbone/stem_conv"),
    *_batch_norm("stem.conv1.norm", "backbone/stem_norm"),
    *_conv("res{s}.{i}.conv{n}", "backbone/res{s}_{i}/conv{n}"),
    *_batch_norm("res{s}.{i}.conv{n}.norm", "backbone/res{s}_{i}/norm{n}"),
    *_conv("res{s}.{i}.shortcut", "backbone/res{s}_{i}/shortcut"),
    *_batch_norm("res{s}.{i}.shortcut.norm", "backbone/res{s}_{i}/shortcut_norm"),
    # Swin, Microsoft's names
    *_conv("patch_embed.proj", "backbone/patch_embed"),
    *_norm("patch_embed.norm", "backbone/patch_norm"),
    *_norm("layers.{s}.blocks.{i}.norm{n}", "backbone/stage{s}_block{i}/norm{n}"),
    Rule(
        "layers.{s}.blocks.{i}.attn.relative_position_bias_table",
        "backbone/stage{s}_block{i}/attention/relative_position_bias",
    ),
    *_linear("layers.{s}.blocks.{i}.attn.qkv", "backbone/stage{s}_block{i}/attention/qkv"),
    *_linear("layers.{s}.blocks.{i}.attn.proj", "backbone/stage{s}_block{i}/attention/proj"),
    *_linear("layers.{s}.blocks.{i}.mlp.fc{n}", "backbone/stage{s}_block{i}/fc{n}"),
    *_norm("layers.{s}.downsample.norm", "backbone/stage{s}_merge/norm"),
    *_linear("layers.{s}.downsample.reduction", "backbone/stage{s}_merge/reduction"),
    *_norm("norm{s}", "backbone/norm{s}"),
]

TORCHVISION_RULES = [
    *_conv("conv1", "backbone/stem_conv"),
    *_batch_norm("bn1", "backbone/stem_norm"),
]
for _layer, _res in (("layer1", "res2"), ("layer2", "res3"), ("layer3", "res4"), ("layer4", "res5")):
    TORCHVISION_RULES += [
        *_conv(_layer + ".{i}.conv{n}", f"backbone/{_res}" + "_{i}/conv{n}"),
        *_batch_norm(_layer + ".{i}.bn{n}", f"backbone/{_res}" + "_{i}/norm{n}"),
        *_conv(_layer + ".{i}.downsample.0", f"backbone/{_res}" + "_{i}/shortcut"),
        *_batch_norm(_layer + ".{i}.downsample.1", f"backbone/{_res}" + "_{i}/shortcut_norm"),
    ]

PIXEL_DECODER_RULES = [
    *_conv("input_proj.{n}.0", "pixel_decoder/input_proj_{n}"),
    *_norm("input_proj.{n}.1", "pixel_decoder/input_norm_{n}"),
    *_conv("pos_linear.{n}", "pixel_decoder/pos_conv_{n}"),
    Rule("transformer.level_embed", "pixel_decoder/level_embed"),
    *_deformable_attention("transformer.encoder.layers.{i}.self_attn", "pixel_decoder/encoder_{i}/attention"),
    *_norm("transformer.encoder.layers.{i}.norm{n}", "pixel_decoder/encoder_{i}/norm{n}"),
    *_linear("transformer.encoder.layers.{i}.linear{n}", "pixel_decoder/encoder_{i}/linear{n}"),
    *_conv("adapter_1", "pixel_decoder/lateral"),
    *_norm("adapter_1.norm", "pixel_decoder/lateral_norm"),
    *_conv("layer_1", "pixel_decoder/output_conv"),
    *_norm("layer_1.norm", "pixel_decoder/output_norm"),
    *_conv("mask_features", "pixel_decoder/mask_features"),
]

DECODER_RULES = [
    Rule("query_feat.weight", "decoder/query_feat"),
    Rule("query_embed.weight", "decoder/query_embed"),
    Rule("level_embed.weight", "decoder/level_embed"),
    *_attention("transformer_cross_attention_layers.{i}.multihead_attn", "decoder/layer_{i}/cross_attention"),
    *_norm("transformer_cross_attention_layers.{i}.norm", "decoder/layer_{i}/cross_norm"),
    *_attention("transformer_self_attention_layers.{i}.self_attn", "decoder/layer_{i}/self_attention"),
    *_norm("transformer_self_attention_layers.{i}.norm", "decoder/layer_{i}/self_norm"),
    *_linear("transformer_ffn_layers.{i}.linear{n}", "decoder/layer_{i}/linear{n}"),
    *_norm("transformer_ffn_layers.{i}.norm", "decoder/layer_{i}/ffn_norm"),
    *_norm("decoder_norm", "decoder/decoder_norm"),
    *_linear("class_embed", "decoder/class_embed"),
    *_linear("mask_embed.layers.{n}", "decoder/mask_embed_{n}"),
    *_linear("adapt_pos2d.0", "decoder/adapt_pos2d_0"),
    *_linear("adapt_pos2d.2", "decoder/adapt_pos2d_1"),
]


def _below(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    return [dataclasses.replace(rule, name=prefix + rule.name) for rule in rules]


MODEL_RULES = [
    *_below("backbone.", BACKBONE_RULES),
    *_below("sem_seg_head.pixel_decoder.", PIXEL_DECODER_RULES),
    *_below("sem_seg_head.predictor.", DECODER_RULES),
]

# Names that older files of Mask2Former and FASeg use, and what they are called since.
RENAMED = [
    (re.compile(r"^(sem_seg_head\.predictor\.)static_query\b"), r"\1query_feat"),
    (re.compile(r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)"), "sem_seg_head.pixel_decoder."),
]

# Computed anew by the model, of use to training alone, or the ImageNet classifier: not read.
IGNORED = re.compile(
    r"^criterion\.empty_weight$|^pixel_(mean|std)$|(^|\.)(num_batches_tracked|relative_position_index|attn_mask)$"
)
IGNORED_OF_BACKBONES = re.compile(IGNORED.pattern + r"|^(stem\.)?fc\.|^head\.|^norm\.")
