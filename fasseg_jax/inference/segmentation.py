"""The result for a photo, which notebooks show as a picture."""

import dataclasses
import io

import numpy as np
from jaxtyping import Float32, UInt, UInt8
from PIL import Image

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.visualization.overlay import draw_overlay

__all__ = ["Segmentation"]

SHOWN_SIDE = 1024  # pixels of the longer side of a picture in a notebook, at most


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The result for one photo of H x W pixels. Notebooks show it as the classes over the photo, with a legend.

    Attributes:
      labels: class ids, uint8, or uint16 for more than 255 classes.
      scores: the score of each class, if asked for: the sum over the queries of the query's probability of the class
        times its probability that the pixel is in its mask. At least 0, not normalized.
      uncertainty: if asked for, the mean over the pixels of 1 - the sum of p², where p are the classes' shares of the
        sum of the pixel's scores: 0 if one class has all of it, almost 1 if many classes have equal shares.
      image: the photo, if it is known.
      classes: names and palette of the K classes, if they are known.
    """

    labels: UInt[np.ndarray, "H W"]
    scores: Float32[np.ndarray, "H W K"] | None = None
    uncertainty: float | None = None
    image: UInt8[np.ndarray, "H W 3"] | None = dataclasses.field(default=None, repr=False)
    classes: ClassTable | None = dataclasses.field(default=None, repr=False)

    def overlay(self) -> Image.Image:
        """The classes in color over the photo, with a legend: an RGB picture.

        Raises:
          ValueError: the photo or the classes are not known.
        """
        if self.image is None or self.classes is None:
            raise ValueError("the overlay needs the photo and the classes, which this result does not hold")
        return draw_overlay(self.image, self.labels, self.classes)

    def _repr_png_(self) -> bytes | None:
        """What IPython shows; nothing without the photo and the classes."""
        if self.image is None or self.classes is None:
            return None
        step = -(-max(self.labels.shape) // SHOWN_SIDE)  # large photos are drawn at a fraction of their size
        shown = dataclasses.replace(
            self, labels=self.labels[::step, ::step], scores=None, image=self.image[::step, ::step]
        )
        file = io.BytesIO()
        shown.overlay().save(file, "png")
        return file.getvalue()
