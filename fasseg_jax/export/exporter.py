"""Writes a model as one file that needs no code of this package."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt, UInt8
from ml_collections import ConfigDict

from fasseg_jax.data.labels import label_dtype
from fasseg_jax.data.preprocessing import normalize
from fasseg_jax.export.load_exported import FORMAT
from fasseg_jax.inference.views import ceil_div
from fasseg_jax.models.fasseg import FASeg, build_model
from fasseg_jax.models.predictions import MASK_STRIDE, Predictions
from fasseg_jax.ops.bilinear import interpolate, taps
from fasseg_jax.ops.deformable.sampling import METHODS
from fasseg_jax.ops.selection import first_argmax
from fasseg_jax.runtime.files import Path, make_path, write_atomically
from fasseg_jax.weights.checkpoint import Checkpoint

__all__ = ["PLATFORMS", "export_model", "labels_function"]

PLATFORMS = ("cpu", "cuda", "tpu")
BLOCK_ROWS = 32  # rows of the photo whose scores are in memory at once

LabelsFunction = Callable[[dict[str, Array], UInt8[Array, "H W 3"]], UInt[Array, "H W"]]


def export_model(
    checkpoint: Checkpoint,
    sizes: Sequence[tuple[int, int]],
    output: str | Path,
    separate_weights: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
    announce: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a model for `load_exported.load`.

    Args:
      checkpoint: holds a whole model.
      sizes: (H, W) of the photos in pixels; the file gets one function for each.
      output: a file whose name ends in .npz.
      separate_weights: write the weights to NAME.weights.npz beside it, which other exports of the model can share.
      platforms: names of jax.export: "cpu", "cuda", "rocm", "tpu".
      overwrite: replace existing files.
      announce: is called with a line before each size, during which the function is silent.

    Returns:
      The files.

    Raises:
      FileExistsError: a file exists and must not be replaced.
      ValueError: the checkpoint holds only a backbone, a size is not positive, or the output has another ending.
    """
    output = make_path(output)
    weights_file = output.with_suffix(".weights.npz")
    files = [output, weights_file] if separate_weights else [output]
    checkpoint.require_whole_model()
    _check_request(sizes, files, overwrite)

    model = build_model(_exportable(checkpoint.config.model))
    weights = {path: np.asarray(value) for path, value in flatten_dict(checkpoint.variables, sep="/").items()}
    functions = {}
    for size in sizes:
        if announce is not None:
            announce(f"Lowering the network for {size[0]}x{size[1]} pixels: up to some minutes.")
        functions[size] = _export(model, size, weights, platforms)
    metadata = {
        "format": FORMAT,
        "jax": jax.__version__,
        "calling_convention": max(function.calling_convention_version for function in functions.values()),
        "platforms": list(platforms),
        "sizes": [list(size) for size in sizes],
        "classes": {"names": checkpoint.classes.names, "palette": checkpoint.classes.palette.tolist()},
        "weights": list(weights),
        "weights_file": None,
    }
    if separate_weights:
        _write_archive(weights_file, weights)
        digest = hashlib.sha256(weights_file.read_bytes()).hexdigest()
        metadata["weights_file"] = {"name": weights_file.name, "sha256": digest}
    arrays = {"metadata": _as_array(json.dumps(metadata).encode())}
    for (height, width), function in functions.items():
        arrays[f"function_{height}x{width}"] = _as_array(function.serialize())
    _write_archive(output, arrays if separate_weights else {**arrays, **weights})
    return files


def labels_function(model: FASeg, size: tuple[int, int]) -> LabelsFunction:
    """Make the pure function from weights and a photo to labels.

    Args:
      model: the network.
      size: (H, W) of the photo in pixels, of any values. The function does not resize the photo to a test size.

    Returns:
      (weights {path: array}, RGB photo) -> labels, uint8, or uint16 for more than 255 classes. They are those of
      `Segmenter` for a photo that it does not resize either.
    """
    bottom, right = (-side % model.size_divisor for side in size)

    def labels(weights: dict[str, Array], photo: UInt8[Array, "H W 3"]) -> UInt[Array, "H W"]:
        image = jnp.pad(normalize(photo), ((0, bottom), (0, right), (0, 0)))
        predictions = model.apply(unflatten_dict(weights, sep="/"), image[None])
        assert isinstance(predictions, Predictions)
        class_probabilities = jax.nn.softmax(predictions.class_logits[0])[:, :-1]
        return _labels(class_probabilities, predictions.mask_logits[0].transpose(1, 2, 0), size)

    return labels


def _labels(
    class_probabilities: Float[Array, "Q K"], mask_logits: Float[Array, "h w Q"], size: tuple[int, int]
) -> UInt[Array, "H W"]:
    """Labels of a photo of `size`, of which the network saw a padded copy (docs/specification.md, section 6)."""
    height, width = size
    row_taps, all_column_taps = (taps(length, length * MASK_STRIDE) for length in mask_logits.shape[:2])
    low, high, weight = (values[:width] for values in all_column_taps)
    # Blocks of rows, of which the last repeats the photo's last row.
    rows = np.arange(ceil_div(height, BLOCK_ROWS) * BLOCK_ROWS).clip(max=height - 1).reshape(-1, BLOCK_ROWS)

    def label_block(row_taps: tuple[Array, Array, Array]) -> Array:
        masks = interpolate(mask_logits, *row_taps, axis=0)  # (R, w, Q)
        masks = interpolate(masks, low, high, weight, axis=1)  # (R, W, Q)
        scores = jnp.einsum("rwq,qk->rwk", jax.nn.sigmoid(masks), class_probabilities, precision="highest")
        return first_argmax(scores, axis=-1)  # (R, W)

    labels = jax.lax.map(label_block, tuple(values[rows] for values in row_taps))  # (blocks, R, W)
    return labels.reshape(-1, width)[:height].astype(label_dtype(class_probabilities.shape[1]))


def _check_request(sizes: Sequence[tuple[int, int]], files: Sequence[Path], overwrite: bool) -> None:
    if files[0].suffix != ".npz":
        raise ValueError(f"{files[0]}: the file is a NumPy archive; its name must end in .npz")
    if not sizes or any(side < 1 for size in sizes for side in size):
        raise ValueError(f"sizes must be (height, width) of at least one pixel, not {list(sizes)}")
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file}: exists; name another file or pass --overwrite")


def _exportable(model_config: ConfigDict) -> ConfigDict:
    """The configuration, without kernels that JAX does not promise to run in its next versions."""
    config = model_config.copy_and_resolve_references()
    method = METHODS.get(config.deformable_attention)  # None for "auto"
    if method is None or not method.exportable:
        config.deformable_attention = "gather"
    return config


def _export(
    model: FASeg, size: tuple[int, int], weights: dict[str, np.ndarray], platforms: Sequence[str]
) -> jax.export.Exported:
    """The labels function of a size, lowered to StableHLO for all platforms."""
    shapes = {path: jax.ShapeDtypeStruct(value.shape, value.dtype) for path, value in weights.items()}
    photo = jax.ShapeDtypeStruct((*size, 3), jnp.uint8)
    return jax.export.export(jax.jit(labels_function(model, size)), platforms=platforms)(shapes, photo)


def _as_array(content: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def _write_archive(file: Path, arrays: dict[str, Any]) -> None:
    with write_atomically(file) as partial:
        np.savez(partial, **arrays)
