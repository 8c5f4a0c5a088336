"""Segmenting photos: preprocessing -> network -> scores -> labels, the one path that every program shares."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.checkpoint import load_checkpoint
from fasseg_jax.classes import ClassTable
from fasseg_jax.model import FASeg, build_model
from fasseg_jax.preprocessing import normalise, pad, resize_photo, resized_size
from fasseg_jax.scores import View, photo_labels, photo_scores

__all__ = ["Segmentation", "Segmenter"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The result for one photo of H x W pixels.

    Attributes:
      labels: (H, W) class ids, uint8, or uint16 where there are more than 255 classes.
      scores: (H, W, K) float32, if asked for. The score of a class sums, over the queries, the probability of the
        class times that of the pixel being in the query's mask: 0 or more, not normalised.
    """

    labels: np.ndarray
    scores: np.ndarray | None = None


class Segmenter:
    """Segments photos with a trained model: `segmenter(photo).labels`.

    The network is compiled once for each size that photos take after resizing and padding; later photos of the same
    size run at once.

    Attributes:
      config: the whole configuration; `model` and `inference` are used.
      classes: names and palette of the K classes, or None if not given.
    """

    def __init__(self, config: ConfigDict, variables: dict, classes: ClassTable | None = None):
        if classes is not None and len(classes) != config.model.num_classes:
            raise ValueError(
                f"{len(classes)} classes for a model of config.model.num_classes {config.model.num_classes}"
            )
        self.config = config
        self.classes = classes
        self._model = build_model(config.model)
        self._variables = jax.device_put(variables)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike) -> "Segmenter":
        """Load what `save_checkpoint` wrote, for instance by `convert.py`.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: it is damaged, or holds a backbone alone.
        """
        checkpoint = load_checkpoint(path)
        if checkpoint.contents != "model":
            raise ValueError(
                f"{path}: holds a backbone alone, to start a training from; segmenting needs a whole model"
            )
        return cls(checkpoint.config, checkpoint.variables, checkpoint.classes)

    def __call__(self, image: np.ndarray, scores: bool = False) -> Segmentation:
        """Segment a photo.

        Args:
          image: uint8 RGB, (H, W, 3), of any size.
          scores: return the scores as well; they take 4 H W K bytes.

        Raises:
          ValueError: the image is no uint8 array (H, W, 3).
          FloatingPointError: the weights give numbers that are not finite.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image must be RGB, uint8 (H, W, 3), not {image.dtype} {image.shape}")
        size = image.shape[:2]
        view = self.view(image)
        return Segmentation(photo_labels(view, size), photo_scores(view, size) if scores else None)

    def view(self, image: np.ndarray) -> View:
        """Predict a photo, uint8 RGB (H, W, 3), at the test size of the configuration."""
        settings = self.config.inference
        size = resized_size(image.shape[:2], settings.short_side, settings.max_long_side)
        network_input = pad(normalise(resize_photo(image, size)))
        class_probabilities, mask_logits, finite = _predict(self._model, self._variables, network_input)
        if not finite:
            raise FloatingPointError("the network's output is not finite: are the weights damaged?")
        return View(size, class_probabilities, mask_logits)


@functools.partial(jax.jit, static_argnums=0)
def _predict(model: FASeg, variables: dict, image: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Class probabilities (Q, K), mask logits (H/4, W/4, Q) of one normalised, padded image; whether all is finite."""
    predictions = model.apply(variables, image[None], train=False)
    class_logits = predictions.class_logits[0].astype(jnp.float32)
    mask_logits = predictions.mask_logits[0].astype(jnp.float32).transpose(1, 2, 0)
    finite = jnp.isfinite(class_logits).all() & jnp.isfinite(mask_logits).all()
    return jax.nn.softmax(class_logits)[:, :-1], mask_logits, finite
