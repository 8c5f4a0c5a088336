"""Segmenting photos: preprocessing, network, scores, labels. Every program predicts by this path."""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float32, UInt
from ml_collections import ConfigDict

from fasseg_jax.config import check_section
from fasseg_jax.data.classes import ClassTable, check_num_classes
from fasseg_jax.inference.batching import batches_of, group_photos
from fasseg_jax.inference.scores import Canvas, ViewPrediction
from fasseg_jax.inference.segmentation import Segmentation
from fasseg_jax.inference.views import PhotoViews, inference_settings
from fasseg_jax.models.fasseg import FASeg, build_model
from fasseg_jax.runtime.compilation import release_compiler_memory
from fasseg_jax.runtime.distributed import DATA, batch_sharding, replicated
from fasseg_jax.runtime.read_ahead import map_ahead
from fasseg_jax.weights.pretrained import load_pretrained

__all__ = ["Segmentation", "Segmenter"]

Key = TypeVar("Key", bound=Hashable)

# Platforms that compute one photo at a time: batches would save nothing there, and would round differently.
PHOTO_BY_PHOTO = ("cpu",)


class Segmenter:
    """Segments photos with a trained model: `segmenter(photo).labels`, or many photos by `segment_all`.

    `config.inference` selects the mode (see `fasseg_jax.inference.views`). JAX compiles the network once for each
    padded shape of its inputs; later photos of the same shape run at once.

    Attributes:
      config: the whole configuration. `model` and `inference` are used, and `augmentation.crop` for sliding windows.
      classes: names and palette of the K classes, or None if not given.
      model: the network.
      variables: its parameters and statistics, on every device.
      announce: is called with a line before JAX compiles a program, during which the segmenter is silent; None by
        default.
      input_shapes: padded (height, width) of the network's inputs so far. JAX compiled or loaded a program for each.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: dict,
        classes: ClassTable | None = None,
        *,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Prepare to compute on several devices of this host.

        Args:
          config: the whole configuration.
          variables: the model's, as `load_checkpoint` reads them.
          classes: names and palette of the K classes.
          devices: by default only the device that JAX chooses.

        Raises:
          ValueError: `classes` are not as many as the model's, or a field of `config.inference` is not allowed.
        """
        if classes is not None:
            check_num_classes(classes, config.model.num_classes)
        self.config = config.copy_and_resolve_references()
        self.config.inference = inference_settings(config)
        self.classes = classes
        self.announce: Callable[[str], None] | None = None
        self.input_shapes: set[tuple[int, int]] = set()
        self._announced: set[str] = set()
        self.model = build_model(config.model)
        self._mesh = Mesh(np.array(list(devices or jnp.zeros(()).devices())), (DATA,))
        self.variables = jax.device_put(variables, replicated(self._mesh))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        inference: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "Segmenter":
        """Load a checkpoint, for example of `convert.py`.

        Args:
          path: the folder of a checkpoint, or of a run, whose best checkpoint is taken; or the name of a model that
            `fasseg push` uploaded, "hf://OWNER/NAME" (see `fasseg_jax.weights.remote`).
          inference: fields of the checkpoint's `config.inference` to change, e.g. {"mode": "multi_scale"}.
          dtype: of the network's computation, "float32" or "bfloat16", if it is to differ from the checkpoint's.
          devices: as for the constructor.

        Raises:
          FileNotFoundError: there is no checkpoint.
          OSError: the model cannot be fetched.
          ValueError: the checkpoint is damaged or holds only a backbone, or `dtype` or a field of `inference` is not
            allowed.
        """
        checkpoint = load_pretrained(path)
        checkpoint.require_whole_model(os.fspath(path))
        checkpoint.config.inference = inference_settings(checkpoint.config, inference or {})
        if dtype is not None:
            checkpoint.config.model.dtype = dtype
            check_section("model", checkpoint.config.model)
        return cls(checkpoint.config, checkpoint.variables, checkpoint.classes, devices=devices)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        inference: Mapping[str, Any] | None = None,
        dtype: str | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "Segmenter":
        """Do as `from_checkpoint`: the name that users of transformers and Keras expect, e.g. for "hf://OWNER/NAME"."""
        return cls.from_checkpoint(name, inference=inference, dtype=dtype, devices=devices)

    def __call__(self, image: np.ndarray, scores: bool = False, uncertainty: bool = False) -> Segmentation:
        """Segment a photo.

        Args:
          image: uint8 RGB, (H, W, 3), of any size.
          scores: also return the scores, which take 4 H W K bytes.
          uncertainty: also return the uncertainty.

        Raises:
          ValueError: the image is not a uint8 array (H, W, 3).
          FloatingPointError: the network's output is not finite.
        """
        [(_, result)] = self.results([(None, image)], scores=scores, uncertainty=uncertainty)
        return dataclasses.replace(result, image=image, classes=self.classes)

    def segment_all(
        self, photos: Iterable[tuple[Key, np.ndarray]], batch_size: int = 1
    ) -> Iterator[tuple[Key, UInt[np.ndarray, "H W"]]]:
        """Segment many photos, and yield (key, labels) of each, in any order.

        Photos of the same padded shape share batches, which are divided among the devices. A photo's result does not
        depend on the others in its batch. CPUs ignore `batch_size` and compute photo by photo, just as fast. On other
        devices the compiler may order sums differently for another `batch_size`, and scores differ by rounding.

        Args:
          photos: (key, image) of each, images as for one photo. Keys differ, and messages name photos by them. Photos
            are taken in the caller's thread, and a few batches of them are in memory at a time.
          batch_size: inputs of the network per device.

        Raises:
          ValueError, FloatingPointError: as for one photo; the message names the key.
        """
        for key, result in self.results(photos, batch_size):
            yield key, result.labels

    @property
    def num_devices(self) -> int:
        """How many devices share each batch."""
        return self._mesh.size

    @property
    def batches_pay(self) -> bool:
        """Whether the devices compute several photos of one shape in less time than one by one; not so on CPUs."""
        return self._mesh.devices.flat[0].platform not in PHOTO_BY_PHOTO

    def padded_shapes(self, image: np.ndarray) -> tuple[tuple[int, int], ...]:
        """The padded (height, width) of each view of a photo. Photos of equal shapes can share batches.

        Raises:
          ValueError: the image is not a uint8 array (H, W, 3).
        """
        return PhotoViews(image, self.config).shapes

    def announce_once(self, program: str, shape: tuple[int, int]) -> None:
        """Announce that `program` is compiled for inputs of `shape`, (height, width), if it was not announced yet."""
        message = (
            f"Compiling {program} for {shape[0]}x{shape[1]} pixels (height x width): up to some minutes the first "
            "time, later seconds."
        )
        if self.announce is not None and message not in self._announced:
            self._announced.add(message)
            self.announce(message)

    def results(
        self,
        photos: Iterable[tuple[Key, np.ndarray]],
        batch_size: int = 1,
        scores: bool = False,
        uncertainty: bool = False,
    ) -> Iterator[tuple[Key, Segmentation]]:
        """Segment many photos as `segment_all` does, and yield (key, result) of each, with what is asked for."""
        devices = list(self._mesh.devices.flat)
        per_device = batch_size if self.batches_pay else 1
        make_input = functools.partial(_network_input, size=per_device * len(devices))
        complete: list[_Photo] = []
        planned = (_Photo(key, image, self.config, scores, uncertainty) for key, image in photos)
        for batch, images in map_ahead(make_input, self._batches(planned, per_device * len(devices))):
            predictions, finite = self._predict(images)
            # While the devices compute these, the caller takes the results of the batch before.
            yield from (photo.result() for photo in complete)
            for (photo, _), output in zip(batch, _per_image((predictions, finite), devices, per_device), strict=False):
                photo.add(*output)
            complete = [photo for photo in dict.fromkeys(photo for photo, _ in batch) if photo.is_complete]
        yield from (photo.result() for photo in complete)

    def _batches(self, photos: Iterable["_Photo"], size: int) -> Iterator[list[tuple["_Photo", int]]]:
        """Batches of at most `size` views of one shape: (photo, index of the view)."""
        for group in group_photos(photos, operator.attrgetter("views"), size):
            yield from batches_of(group[0].views.shapes, group, size)

    def _predict(self, images: Float32[np.ndarray, "B h w 3"]) -> tuple[ViewPrediction, Bool[Array, "B"]]:
        """Divide a batch among the devices, and predict it."""
        shape = (images.shape[1], images.shape[2])
        self.announce_once("the network", shape)
        divided = jax.device_put(images, batch_sharding(self._mesh))
        prediction = _predict(self.model, self._mesh, self.variables, divided)
        if shape not in self.input_shapes:  # JAX has just compiled the network for it
            self.input_shapes.add(shape)
            release_compiler_memory()
        return prediction


class _Photo:
    """A photo in progress: its views, and what has been computed of them."""

    def __init__(self, key: Any, image: np.ndarray, config: ConfigDict, scores: bool, uncertainty: bool):
        self._key = key
        try:
            self.views = PhotoViews(image, config)
        except ValueError as error:
            raise ValueError(self._named(error)) from None
        of_photo = self.views.size, self.views.placements, config.model.num_classes
        self._labels = Canvas(*of_photo, uncertainty=uncertainty)
        self._scores = Canvas(*of_photo, scores=True) if scores else None
        self._finite: list[Array] = []

    def add(self, prediction: ViewPrediction, finite: Bool[Array, ""]) -> None:
        """Take the prediction of the next view, and whether all of it is finite."""
        self._finite.append(finite)
        self._labels.add(prediction)
        if self._scores:
            self._scores.add(prediction)

    @property
    def is_complete(self) -> bool:
        return len(self._finite) == len(self.views.placements)

    def result(self) -> tuple[Any, Segmentation]:
        if not all(jax.device_get(self._finite)):
            raise FloatingPointError(self._named("the network's output is not finite: are the weights damaged?"))
        labels, scores = self._labels.finish(), self._scores.finish() if self._scores else None
        return self._key, Segmentation(labels, scores, self._labels.uncertainty)

    def _named(self, message: object) -> str:
        return str(message) if self._key is None else f"{self._key}: {message}"


def _network_input(batch: list[tuple[_Photo, int]], size: int) -> Float32[np.ndarray, "{size} h w 3"]:
    """The network's input for a batch; if it has fewer views than `size`, the last is repeated."""
    images = [photo.views.input(index) for photo, index in batch]
    return np.stack(images + images[-1:] * (size - len(images)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(
    model: FASeg, mesh: Mesh, variables: dict[str, Any], images: Float32[Array | np.ndarray, "B h w 3"]
) -> tuple[ViewPrediction, Bool[Array, "B"]]:
    """Predict normalized, padded images, each device its part of the batch; also whether each prediction is finite."""

    def predict(variables, images):
        predictions = model.apply(variables, images, train=False)
        class_logits = predictions.class_logits.astype(jnp.float32)
        mask_logits = predictions.mask_logits.astype(jnp.float32).transpose(0, 2, 3, 1)  # (B, Q, h, w) -> (B, h, w, Q)
        finite = jnp.isfinite(class_logits).all((1, 2)) & jnp.isfinite(mask_logits).all((1, 2, 3))
        return ViewPrediction(jax.nn.softmax(class_logits)[..., :-1], mask_logits), finite

    divided = PartitionSpec(DATA)
    return jax.shard_map(predict, mesh=mesh, in_specs=(PartitionSpec(), divided), out_specs=divided, check_vma=False)(
        variables, images
    )


def _per_image(outputs: Any, devices: Sequence[jax.Device], per_device: int) -> Iterator[Any]:
    """The outputs for each image of a batch, on the device that computed them."""
    leaves, structure = jax.tree.flatten(outputs)
    shards = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in leaves]
    for device in devices:
        for index in range(per_device):
            yield jax.tree.unflatten(structure, [shard[device][index] for shard in shards])
