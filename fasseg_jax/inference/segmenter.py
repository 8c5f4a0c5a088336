"""Segmenting photos: preprocessing -> network -> scores -> labels, the one path that every program shares."""

import dataclasses
import functools
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, check_num_classes
from fasseg_jax.inference.batching import batches_of, group_photos
from fasseg_jax.inference.scores import Canvas, ViewPrediction
from fasseg_jax.inference.views import PhotoViews, inference_settings
from fasseg_jax.models.fasseg import FASeg, build_model
from fasseg_jax.runtime.compilation import release_compiler_memory
from fasseg_jax.runtime.distributed import DATA, batch_sharding, replicated
from fasseg_jax.runtime.read_ahead import map_ahead
from fasseg_jax.weights.checkpoint import load_checkpoint

__all__ = ["Segmentation", "Segmenter"]

# Platforms on which photos are not computed together: it saves nothing there, and takes other roundings.
PHOTO_BY_PHOTO = ("cpu",)


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
    """Segments photos with a trained model: `segmenter(photo).labels`, or many of them by `segment_all`.

    How is said by `config.inference` (see `fasseg_jax.inference.views`). The network is compiled once for each padded
    shape of its inputs; later photos of the same shape run at once.

    Attributes:
      config: the whole configuration; `model` and `inference` are used, and `augmentation.crop` for sliding windows.
      classes: names and palette of the K classes, or None if not given.
      model: the network.
      variables: its parameters and statistics, on every device.
      input_shapes: padded (height, width) of the network's inputs so far, each of which was compiled or loaded.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: dict,
        classes: ClassTable | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Make ready to compute on `devices` of this host; by default on the one that JAX chooses.

        Raises:
          ValueError: `classes` are not as many as the model's, or `config.inference` makes no sense.
        """
        if classes is not None:
            check_num_classes(classes, config.model.num_classes)
        self.config = config.copy_and_resolve_references()
        self.config.inference = inference_settings(config)
        self.classes = classes
        self.input_shapes: set[tuple[int, int]] = set()
        self.model = build_model(config.model)
        devices = list(devices or jnp.zeros(()).devices())
        self._mesh = Mesh(np.array(devices), (DATA,))
        self.variables = jax.device_put(variables, replicated(self._mesh))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        inference: Mapping[str, Any] | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "Segmenter":
        """Load what `save_checkpoint` wrote, for instance by `convert.py`.

        Args:
          path: the checkpoint's folder, or a run's, for its best.
          inference: fields of its `config.inference` to change, e.g. {"mode": "multi_scale"}.
          devices: as for the constructor.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: it is damaged, or holds a backbone alone, or `inference` makes no sense.
        """
        checkpoint = load_checkpoint(path)
        if checkpoint.contents != "model":
            raise ValueError(
                f"{path}: holds a backbone alone, to start a training from; segmenting needs a whole model"
            )
        checkpoint.config.inference = inference_settings(checkpoint.config, inference or {})
        return cls(checkpoint.config, checkpoint.variables, checkpoint.classes, devices=devices)

    def __call__(self, image: np.ndarray, scores: bool = False) -> Segmentation:
        """Segment a photo.

        Args:
          image: uint8 RGB, (H, W, 3), of any size.
          scores: return the scores as well; they take 4 H W K bytes.

        Raises:
          ValueError: the image is no uint8 array (H, W, 3).
          FloatingPointError: the weights give numbers that are not finite.
        """
        [(_, result)] = self._segment([(None, image)], batch_size=1, scores=scores)
        return result

    def segment_all(
        self, photos: Iterable[tuple[Hashable, np.ndarray]], batch_size: int = 1
    ) -> Iterator[tuple[Hashable, np.ndarray]]:
        """Labels of many photos, as (key, labels), in any order.

        Photos of the same padded shape share batches, divided over the devices; the last of a shape are filled up. A
        photo's result does not depend on which others it shares a batch with. On CPUs it does not depend on
        `batch_size` either, which they ignore: they compute photo by photo, as fast. Elsewhere the compiler may order
        sums differently for another `batch_size`; scores then differ by rounding.

        Args:
          photos: of any sizes, each with a key that tells it from others, in messages too. Taken in the caller's
            thread; some batches' worth of them are in memory at a time.
          batch_size: inputs of the network on each device at once.

        Raises:
          ValueError, FloatingPointError: as for one photo; the message names the key.
        """
        for key, result in self._segment(photos, batch_size, scores=False):
            yield key, result.labels

    def _segment(
        self, photos: Iterable[tuple[Hashable, np.ndarray]], batch_size: int, scores: bool
    ) -> Iterator[tuple[Hashable, Segmentation]]:
        devices = self._mesh.devices.flatten()
        per_device = 1 if devices[0].platform in PHOTO_BY_PHOTO else batch_size
        size = per_device * len(devices)
        num_classes = self.config.model.num_classes
        photos = (_Photo(key, image, self.config, num_classes, scores) for key, image in photos)
        batches = (
            batch
            for group in group_photos(photos, lambda photo: photo.views, size)
            for batch in batches_of(group[0].views.shapes, group, size)
        )
        complete: list[_Photo] = []
        for batch, images in map_ahead(functools.partial(_network_input, size=size), batches):
            shape = images.shape[1:3]
            images = jax.device_put(images, batch_sharding(self._mesh))
            outputs = _predict(self.model, self._mesh, self.variables, images)
            if shape not in self.input_shapes:  # it was compiled
                self.input_shapes.add(shape)
                release_compiler_memory()
            # While the devices compute these, whoever asked takes the results of those before.
            yield from (photo.result() for photo in complete)
            for (photo, _), output in zip(batch, _divide(outputs, devices, per_device), strict=False):
                photo.add(*output)
            complete = [photo for photo in dict.fromkeys(photo for photo, _ in batch) if photo.is_complete]
        yield from (photo.result() for photo in complete)


class _Photo:
    """A photo on its way: its views, and what has been computed of them."""

    def __init__(self, key: Hashable, image: np.ndarray, config: ConfigDict, num_classes: int, scores: bool):
        self._key = key
        try:
            self.views = PhotoViews(image, config)
        except ValueError as error:
            raise ValueError(self._named(error)) from None
        kinds = (False, True) if scores else (False,)
        arguments = self.views.size, self.views.placements, num_classes
        self._canvases = [Canvas(*arguments, kind) for kind in kinds]
        self._finite: list[jax.Array] = []

    def add(self, class_probabilities: jax.Array, mask_logits: jax.Array, finite: jax.Array) -> None:
        """Take the network's output for the next view."""
        self._finite.append(finite)
        for canvas in self._canvases:
            canvas.add(ViewPrediction(class_probabilities, mask_logits))

    @property
    def is_complete(self) -> bool:
        return len(self._finite) == len(self.views.placements)

    def result(self) -> tuple[Hashable, Segmentation]:
        if not all(jax.device_get(self._finite)):
            raise FloatingPointError(self._named("the network's output is not finite: are the weights damaged?"))
        return self._key, Segmentation(*(canvas.finish() for canvas in self._canvases))

    def _named(self, message: object) -> str:
        return str(message) if self._key is None else f"{self._key}: {message}"


def _network_input(batch: list[tuple[_Photo, int]], size: int) -> np.ndarray:
    """Inputs of one shape, (size, h, w, 3); where a batch has fewer the last is repeated."""
    images = [photo.views.input(index) for photo, index in batch]
    return np.stack(images + images[-1:] * (size - len(images)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(model: FASeg, mesh: Mesh, variables: dict, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Class probabilities (B, Q, K), mask logits (B, H/4, W/4, Q) of normalised, padded images; if all is finite (B,).

    Each device computes its share of the batch by itself.
    """

    def predict(variables, images):
        predictions = model.apply(variables, images, train=False)
        class_logits = predictions.class_logits.astype(jnp.float32)
        mask_logits = predictions.mask_logits.astype(jnp.float32).transpose(0, 2, 3, 1)  # (B, Q, h, w) -> (B, h, w, Q)
        finite = jnp.isfinite(class_logits).all((1, 2)) & jnp.isfinite(mask_logits).all((1, 2, 3))
        return jax.nn.softmax(class_logits)[..., :-1], mask_logits, finite

    shares = PartitionSpec(DATA)
    return jax.shard_map(
        predict, mesh=mesh, in_specs=(PartitionSpec(), shares), out_specs=(shares, shares, shares), check_vma=False
    )(variables, images)


def _divide(
    outputs: tuple[jax.Array, ...], devices: Sequence[jax.Device], per_device: int
) -> Iterator[tuple[jax.Array, ...]]:
    """The outputs for each image of a batch, on the device that computed them."""
    shards = [{shard.device: shard.data for shard in output.addressable_shards} for output in outputs]
    for device in devices:
        for index in range(per_device):
            yield tuple(shard[device][index] for shard in shards)
