"""What all backbones have in common."""

from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """Normalized images -> the four maps [res2, res3, res4, res5] at strides 4, 8, 16 and 32.

    Its fields are those of `config.model.backbone` (but `kind`, its key in `BACKBONES`), `remat` and `dtype`.

    Attributes:
      size_divisor: H and W of the images must be multiples of this; at least 32.
    """

    size_divisor: ClassVar[int] = 32

    def __call__(self, images: Float[Array, "B H W 3"], train: bool = False) -> list[Float[Array, "B _ _ _"]]:
        raise NotImplementedError

    def layers(self) -> list[list[str]]:
        """The backbone's modules and parameters by depth, from the images on, for `config.optimizer.layer_decay`.

        The learning rate of each list is that of the next, times the decay. What no list names has the full rate.
        """
        raise NotImplementedError
