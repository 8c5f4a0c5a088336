"""The checks of annotations while tests run."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

CONFIGURATION = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for mypy


def check_calls(function: Callable) -> Callable:
    """`function` with its arguments and result checked, unless it makes a data class.

    JAX fills the data classes that are trees with whatever it maps over them: shapes, shardings, strings.
    """
    return function if function.__name__ == "__init__" else beartype(function, conf=CONFIGURATION)
