"""What the Pallas kernels for TPUs have in common."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

__all__ = ["compiled_or_emulated"]


def compiled_or_emulated(run: Callable[..., Any], *arguments: Any) -> Any:
    """`run(*arguments, interpret=...)` of a kernel: compiled on a TPU; elsewhere Pallas emulates it, slowly."""
    compiled, emulated = (partial(run, interpret=interpret) for interpret in (False, True))
    return jax.lax.platform_dependent(*arguments, tpu=compiled, default=emulated)
