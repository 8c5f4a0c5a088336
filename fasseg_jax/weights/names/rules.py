"""Rules of which the tables of names consist: a PyTorch name, a Flax path, and the order of the axes.

A letter in braces stands for a number, the same in name and path ("res{s}.{i}.conv{n}", "backbone/res{s}_{i}/conv{n}"),
so a table translates in both directions. Paths leave out the collection ("params" or "batch_stats"), which the model
decides: frozen batch norm, for instance, keeps all its values in "batch_stats".
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = [
    "Rule",
    "attention_rules",
    "batch_norm_rules",
    "below",
    "conv_rules",
    "deformable_attention_rules",
    "find_rule",
    "linear_rules",
    "norm_rules",
    "packed_rules",
]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table of names.

    Attributes:
      name: the PyTorch name.
      path: the Flax path.
      axes: the transposition from PyTorch to Flax; None keeps the order.
      part: (i, n): the PyTorch parameter is the i-th of n equal parts of the Flax variable, along its last axis.
      leading: number of axes of length 1 that the PyTorch parameter has in front, and the Flax variable lacks.
    """

    name: str
    path: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] = (0, 1)
    leading: int = 0

    def path_of(self, name: str) -> str | None:
        """The path of a PyTorch name; None if the rule is about another one."""
        return _translate(name, self.name, self.path)

    def name_of(self, path: str) -> str | None:
        """The PyTorch name of a path; None if the rule is about another one."""
        return _translate(path, self.path, self.name)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the PyTorch parameter of a Flax variable of this shape."""
        part = (*shape[:-1], shape[-1] // self.part[1])
        ordered = part if self.axes is None else tuple(part[i] for i in np.argsort(self.axes))
        return (1,) * self.leading + ordered

    def to_flax(self, value: np.ndarray) -> np.ndarray:
        """The Flax variable of a PyTorch parameter, or the part of it that the parameter is."""
        value = value.reshape(value.shape[self.leading :])
        return value if self.axes is None else value.transpose(self.axes)

    def to_pytorch(self, value: np.ndarray) -> np.ndarray:
        """The PyTorch parameter of a Flax variable."""
        part = np.split(value, self.part[1], axis=-1)[self.part[0]]
        ordered = part if self.axes is None else part.transpose(np.argsort(self.axes))
        return ordered.reshape((1,) * self.leading + ordered.shape)


def _translate(text: str, source: str, target: str) -> str | None:
    match = _pattern(source).fullmatch(text)
    return match and target.format(**match.groupdict())


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def find_rule(name: str, rules: Iterable[Rule]) -> tuple[Rule, str] | None:
    """The rule for a PyTorch name and the path that it gives; None if no rule is about the name."""
    return next(((rule, path) for rule in rules if (path := rule.path_of(name))), None)


def conv_rules(name: str, path: str) -> list[Rule]:
    """Rules of a convolution, with or without bias."""
    # (out, in, h, w) -> (h, w, in, out); depthwise: (C, 1, h, w) -> (h, w, 1, C)
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
    # q, k, v in one matrix: (3C, C) -> (C, 3C)
    return [
        Rule(f"{name}.in_proj_weight", f"{path}/in_proj_kernel", (1, 0)),
        Rule(f"{name}.in_proj_bias", f"{path}/in_proj_bias"),
        *linear_rules(f"{name}.out_proj", f"{path}/out_proj"),
    ]


def deformable_attention_rules(name: str, path: str) -> list[Rule]:
    """Rules of a multi-scale deformable attention."""
    parts = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return [rule for part in parts for rule in linear_rules(f"{name}.{part}", f"{path}/{part}")]


def packed_rules(names: Sequence[str], kernel: str, bias: str) -> list[Rule]:
    """Rules of linear layers of PyTorch that are one layer here, side by side; `kernel` and `bias` are its paths."""
    rules = []
    for i, name in enumerate(names):
        part = (i, len(names))
        rules += [Rule(f"{name}.weight", kernel, (1, 0), part), Rule(f"{name}.bias", bias, None, part)]
    return rules


def below(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules with `prefix` in front of their PyTorch names."""
    return [dataclasses.replace(rule, name=prefix + rule.name) for rule in rules]
