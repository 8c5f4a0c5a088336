"""Counts the multiply-adds of convolutions and matrix products in a traced function, which papers call FLOPs."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from jax.extend import core

__all__ = ["count_multiply_adds"]


def count_multiply_adds(jaxpr: core.Jaxpr) -> Counter[str]:
    """Count multiply-adds by scope: the names of the modules around an operation, joined by "/".

    As in fvcore and in papers, convolutions, linear layers and matrix products count; norms, activations, softmaxes,
    resizing and the sampling of deformable attention do not. An operation in a loop counts once per iteration. Of code
    that differs between platforms, the default branch counts.
    """
    counts: Counter[str] = Counter()
    for scope, equation, repeats in _equations(jaxpr, "", 1):
        counts[scope] += repeats * _multiply_adds(equation)
    return +counts  # without zeros


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


def _equations(jaxpr: core.Jaxpr, scope: str, repeats: int) -> Iterator[tuple[str, Any, int]]:
    """All equations with their scope and how often they run. The equations of a called function replace the call."""
    for equation in jaxpr.eqns:
        inner_scope = _join_modules(scope, str(equation.source_info.name_stack))
        inner_repeats = repeats * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        functions = list(_called_functions(equation))
        for function in functions:
            yield from _equations(function, inner_scope, inner_repeats)
        if not functions:
            yield inner_scope, equation, repeats


def _join_modules(*scopes: str) -> str:
    """The modules of nested scopes: without methods ("decoder._predict") and operations ("bqc,bhwc->bqhw")."""
    return "/".join(part for scope in scopes for part in scope.split("/") if part.isidentifier())


def _called_functions(equation: Any) -> Iterator[core.Jaxpr]:
    parameters = equation.params
    if equation.primitive.name == "cond":
        platforms = parameters.get("branches_platforms")
        # Without platforms, the data select a branch; this network has no such condition.
        default = parameters["branches"][platforms.index(None) if platforms else 0]
        yield default.jaxpr
        return
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
