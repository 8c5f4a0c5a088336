"""The table of names: where each parameter of the PyTorch programs is found among the Flax variables.

A rule says of a parameter: its PyTorch name, its path among the Flax variables, and the order that its axes take there.
`{s}` and the like stand for a number, the same on both sides, so that the table reads in both directions. Paths leave
the collection out ("params" or "batch_stats"): it follows from the model, in which frozen batch norm keeps all of its
values in "batch_stats".

Here are the official programs' names and torchvision's; those of `transformers` are in `hugging_face_rules.py`.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

import numpy as np

__all__ = [
    "BACKBONE_RULES",
    "IGNORED",
    "IGNORED_OF_BACKBONES",
    "MODEL_RULES",
    "RENAMED",
    "TORCHVISION_RULES",
    "Rule",
    "attention_rules",
    "batch_norm_rules",
    "below",
    "conv_rules",
    "deformable_attention_rules",
    "linear_rules",
    "norm_rules",
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
      name: PyTorch's name.
      path: the Flax path.
      axes: PyTorch's axes in Flax's order; None: as is.
      part: (i, n) where PyTorch's parameter is the i-th of n equal parts, along Flax's last axis, of what is at `path`.
    """

    name: str
    path: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)

    def path_of(self, name: str) -> str | None:
        """The path of a PyTorch name, None if the rule is not about it."""
        return _translate(name, self.name, self.path)

    def name_of(self, path: str) -> str | None:
        """The PyTorch name of a path, None if the rule is not about it."""
        return _translate(path, self.path, self.name)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The PyTorch parameter's shape, where `shape` is that of the variable at the path."""
        shape = (*shape[:-1], shape[-1] // self.part[1])
        return shape if self.axes is None else tuple(shape[i] for i in np.argsort(self.axes))

    def to_flax(self, value: np.ndarray) -> np.ndarray:
        """A PyTorch parameter as what is at the path, or as its part of that."""
        return value if self.axes is None else value.transpose(self.axes)

    def to_pytorch(self, value: np.ndarray) -> np.ndarray:
        """The PyTorch parameter of what is at the path."""
        value = np.split(value, self.part[1], axis=-1)[self.part[0]]
        return value if self.axes is None else value.transpose(np.argsort(self.axes))


def _translate(text: str, source: str, target: str) -> str | None:
    match = _pattern(source).fullmatch(text)
    return match and target.format(**match.groupdict())


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def conv_rules(name: str, path: str) -> list[Rule]:
    """Rules of a convolution, with or without bias."""
    # (out, in, h, w) -> (h, w, in, out); depthwise: (C, 1, h, w) -> (h, w, 1, C).
    return [Rule(f"{name}.weight", f"{path}/kernel", (2, 3, 1, 0)), Rule(f"{name}.bias", f"{path}/bias")]


def linear_rules(name: str, path: str) -> list[Rule]:
    """Rules of a linear layer, with or without bias."""
    # (out, in) -> (in, out)
    return [Rule(f"{name}.weight", f"{path}/kernel", (1, 0)), Rule(f"{name}.bias", f"{path}/bias")]


def norm_rules(name: str, path: str) -> list[Rule]:
    """Rules of a layer norm or group norm."""
    return [Rule(f"{name}.weight", f"{path}/scale"), Rule(f"{name}.bias", f"{path}/bias")]


def batch_norm_rules(name: str, path: str) -> list[Rule]:
    """Rules of a batch norm, frozen or not."""
    return [
        *norm_rules(name, path),
        Rule(f"{name}.running_mean", f"{path}/mean"),
        Rule(f"{name}.running_var", f"{path}/var"),
    ]


def attention_rules(name: str, path: str) -> list[Rule]:
    """Rules of PyTorch's MultiheadAttention."""
    # The packed (3C, C) matrix of q, k, v -> (C, 3C).
    return [
        Rule(f"{name}.in_proj_weight", f"{path}/in_proj_kernel", (1, 0)),
        Rule(f"{name}.in_proj_bias", f"{path}/in_proj_bias"),
        *linear_rules(f"{name}.out_proj", f"{path}/out_proj"),
    ]


def deformable_attention_rules(name: str, path: str) -> list[Rule]:
    """Rules of a multi-scale deformable attention."""
    parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [rule for part in parts for rule in linear_rules(f"{name}.{part}", f"{path}/{part}")]


BACKBONE_RULES = [
    # ResNet, Detectron2's names
    *conv_rules("stem.conv1", "backbone/stem_conv"),
    *batch_norm_rules("stem.conv1.norm", "backbone/stem_norm"),
    *conv_rules("res{s}.{i}.conv{n}", "backbone/res{s}_{i}/conv{n}"),
    *batch_norm_rules("res{s}.{i}.conv{n}.norm", "backbone/res{s}_{i}/norm{n}"),
    *conv_rules("res{s}.{i}.shortcut", "backbone/res{s}_{i}/shortcut"),
    *batch_norm_rules("res{s}.{i}.shortcut.norm", "backbone/res{s}_{i}/shortcut_norm"),
    # Swin, Microsoft's names
    *conv_rules("patch_embed.proj", "backbone/patch_embed"),
    *norm_rules("patch_embed.norm", "backbone/patch_norm"),
    *norm_rules("layers.{s}.blocks.{i}.norm{n}", "backbone/stage{s}_block{i}/norm{n}"),
    Rule(
        "layers.{s}.blocks.{i}.attn.relative_position_bias_table",
        "backbone/stage{s}_block{i}/attention/relative_position_bias",
    ),
    *linear_rules("layers.{s}.blocks.{i}.attn.qkv", "backbone/stage{s}_block{i}/attention/qkv"),
    *linear_rules("layers.{s}.blocks.{i}.attn.proj", "backbone/stage{s}_block{i}/attention/proj"),
    *linear_rules("layers.{s}.blocks.{i}.mlp.fc{n}", "backbone/stage{s}_block{i}/fc{n}"),
    *norm_rules("layers.{s}.downsample.norm", "backbone/stage{s}_merge/norm"),
    *linear_rules("layers.{s}.downsample.reduction", "backbone/stage{s}_merge/reduction"),
    *norm_rules("norm{s}", "backbone/norm{s}"),
]

TORCHVISION_RULES = [
    *conv_rules("conv1", "backbone/stem_conv"),
    *batch_norm_rules("bn1", "backbone/stem_norm"),
]
for _layer, _res in (("layer1", "res2"), ("layer2", "res3"), ("layer3", "res4"), ("layer4", "res5")):
    TORCHVISION_RULES += [
        *conv_rules(_layer + ".{i}.conv{n}", f"backbone/{_res}" + "_{i}/conv{n}"),
        *batch_norm_rules(_layer + ".{i}.bn{n}", f"backbone/{_res}" + "_{i}/norm{n}"),
        *conv_rules(_layer + ".{i}.downsample.0", f"backbone/{_res}" + "_{i}/shortcut"),
        *batch_norm_rules(_layer + ".{i}.downsample.1", f"backbone/{_res}" + "_{i}/shortcut_norm"),
    ]

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


def below(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules with `prefix` before their PyTorch names."""
    return [dataclasses.replace(rule, name=prefix + rule.name) for rule in rules]


MODEL_RULES = [
    *below("backbone.", BACKBONE_RULES),
    *below("sem_seg_head.pixel_decoder.", PIXEL_DECODER_RULES),
    *below("sem_seg_head.predictor.", DECODER_RULES),
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
