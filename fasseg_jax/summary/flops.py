"""Counting the arithmetic of a traced function, as papers count it: multiply-adds of convolutions and products."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.extend import core

__all__ = ["count_multiply_adds"]


def count_multiply_adds(jaxpr: core.Jaxpr) -> Counter[str]:
    """Multiply-adds by place: the names of modules that an operation is in, joined by "/".

    Convolutions, linear layers and matrix products count, as fvcore and the papers count them; norms, activations,
    softmaxes, resizing and the sampling of deformable attention do not. A loop counts as often as it runs; where a
    platform has code of its own, that of the others counts.
    """
    counts = Counter()
    for place, equation, repeats in _equations(jaxpr, "", 1):
        counts[place] += repeats * _multiply_adds(equation)
    return +counts


def _multiply_adds(equation: Any) -> int:
    kind, parameters = equation.primitive.name, equation.params
    if kind == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    elif kind == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        depth = math.prod(kernel) // kernel[parameters["dimension_numbers"].rhs_spec[0]]  # without output channels
    else:
        return 0
    return depth * math.prod(equation.outvars[0].aval.shape)


def _equations(jaxpr: core.Jaxpr, place: str, repeats: int) -> Iterator[tuple[str, Any, int]]:
    """All equations with their place and how often they are computed, those of inner functions in place of the call."""
    for equation in jaxpr.eqns:
        here = "/".join(part for part in (place, str(equation.source_info.name_stack)) if part)
        inner_repeats = repeats * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        inner = list(_inner(equation))
        for function in inner:
            yield from _equations(function, here, inner_repeats)
        if not inner:
            yield here, equation, repeats


def _inner(equation: Any) -> Iterator[core.Jaxpr]:
    """The functions that an equation calls."""
    parameters = equation.params
    if equation.primitive.name == "cond":
        platforms = parameters.get("branches_platforms")
        # Without platforms the branches are alternatives that the data decide; this network has none.
        chosen = parameters["branches"][platforms.index(None) if platforms else 0]
        yield chosen.jaxpr
        return
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
