"""The segments that a prediction is compared with."""

import flax.struct
import jax

__all__ = ["Targets"]


@flax.struct.dataclass
class Targets:
    """The segments to be predicted, one for each class present in an image.

    Attributes:
      labels: (B, H, W) integers at the padded input size, fastest in the smallest type that holds them; ignored and
        padded pixels have a value that is no class.
      classes: (B, T) int32, the classes present, ascending, then -1.
    """

    labels: jax.Array
    classes: jax.Array
