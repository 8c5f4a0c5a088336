"""Rules for the values of fields: kind, range, choices, length."""

import dataclasses
import math
import numbers
from typing import Any

__all__ = ["Rule", "Sequence"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a single value must be.

    Attributes:
      kind: bool, int, float or str; an integer is also a float, but a bool is no integer.
      least, most: limits of a number, which may reach them, except as the next attributes say.
      above, below: whether the number must differ from `least`, and from `most`.
      multiple: an integer must be a multiple of it.
      choices: the texts that are allowed; empty: all.
    """

    kind: type
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    multiple: int = 1
    choices: tuple[str, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether `value` fulfils the rule."""
        if self.kind in (bool, str):
            return isinstance(value, self.kind) and (not self.choices or value in self.choices)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.kind is int else numbers.Real):
            return False
        number: Any = value  # to the type checker, numbers.Real has no order
        above = number > self.least if self.above else number >= self.least
        below = number < self.most if self.below else number <= self.most
        return above and below and (self.kind is float or number % self.multiple == 0)  # NaN compares as False

    def describe(self) -> str:
        """The rule in words, to follow "it must be"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            return "True or False"
        if self.kind is str:
            return "a text"
        noun = "a number" if self.kind is float else "an integer"
        if self.multiple > 1:
            noun = f"a multiple of {self.multiple}"
        least, most = (f"{limit:_}" if self.kind is int else f"{limit:g}" for limit in (self.least, self.most))
        if self.above or self.below:
            return f"{noun} {'above' if self.above else 'from'} {least} and {'below' if self.below else 'up to'} {most}"
        return f"{noun} from {least} to {most}"

    def mistake(self, value: Any) -> str:
        """Why `value` is refused, to follow the field's name."""
        wanted = self.describe()
        return f"is {value!r:.80}; {f'choose {wanted}' if self.choices else f'it must be {wanted}'}"


@dataclasses.dataclass(frozen=True)
class Sequence:
    """What a tuple (or list) of values must be.

    Attributes:
      each: the rule of each value.
      what: the values in words.
      length: how many they are; None: one or more.
      or_empty: whether there may also be none.
    """

    each: Rule
    what: str
    length: int | None = None
    or_empty: bool = False

    def allows(self, value: Any) -> bool:
        """Whether `value` fulfils the rule."""
        if not isinstance(value, tuple | list):
            return False
        if not value:
            return self.or_empty
        return self.length in (None, len(value)) and all(map(self.each.allows, value))

    def describe(self) -> str:
        """The rule in words, to follow "it must be"."""
        return f"{self.what}, each {self.each.describe()}{', or ()' if self.or_empty else ''}"

    def mistake(self, value: Any) -> str:
        """Why `value` is refused, to follow the field's name."""
        return f"is {value!r:.80}; it must be {self.describe()}"
