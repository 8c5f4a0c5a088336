"""The checks of annotations while tests run."""

from collections.abc import Callable
from pathlib import Path

from beartype import BeartypeConf, FrozenDict, beartype

from fasseg_jax.runtime.buckets import BucketPath

CONFIGURATION = BeartypeConf(
    is_pep484_tower=True,  # an int is a float, as for mypy
    hint_overrides=FrozenDict({Path: Path | BucketPath}),  # which has the same methods
)


def check_calls(function: Callable) -> Callable:
    """`function` with its arguments and result checked, unless it makes a data class.

    JAX fills the data classes that are trees with whatever it maps over them: shapes, shardings, strings.
    """
    return function if function.__name__ == "__init__" else beartype(function, conf=CONFIGURATION)
