"""The table of names' rules: a PyTorch name, a Flax path, and the order of axes."""

import dataclasses
import functools
import re
from collections.abc import Iterable

import numpy as np

__all__ = [
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


def below(prefix: str, rules: Iterable[Rule]) -> list[Rule]:
    """The rules with `prefix` before their PyTorch names."""
    return [dataclasses.replace(rule, name=prefix + rule.name) for rule in rules]
