"""The segments that predictions are matched with and compared with."""

from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Integer

__all__ = ["Targets", "loop_over_targets"]

State = TypeVar("State")


@flax.struct.dataclass
class Targets:
    """The ground truth: one segment for each class present in an image.

    Attributes:
      labels: class ids at the padded input size. Ignored and padded pixels have a value that is no class. The smallest
        integer type that holds the labels is the fastest.
      classes: the classes present in each image in ascending order, then -1 as padding.
    """

    labels: Integer[Array, "B H W"]
    classes: Int32[Array, "B T"]

    @property
    def valid(self) -> Bool[Array | np.ndarray, "B T"]:
        """True for targets, False for padding."""
        return self.classes >= 0


def loop_over_targets(
    num_targets: Int[Array, ""], chunk: int, body: Callable[[Int[Array, ""], State], State], start: State
) -> State:
    """`state = body(first, state)` for first = 0, chunk, 2 * chunk, ... below `num_targets`.

    XLA runs as many turns as there are targets, and not as many as there could be. JAX cannot differentiate such a
    loop. Its name in the compiled program tells benchmarks how many targets a turn takes.
    """
    num_chunks = (num_targets + chunk - 1) // chunk
    with jax.named_scope(f"over_targets_by_{chunk}"):
        return jax.lax.fori_loop(0, num_chunks, lambda i, state: body(i * chunk, state), start)
