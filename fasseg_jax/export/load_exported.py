"""Run a model that `python -m fasseg_jax.export` wrote.

This file needs only JAX, NumPy and flatbuffers (`pip install jax flatbuffers`), so you can copy it into any program.

    from load_exported import load

    model = load("model.npz")
    labels = model(photo)  # uint8 (H, W, 3), RGB, one of model.sizes -> (H, W), class ids
    names, colors = model.names, model.palette[labels]
"""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

__all__ = ["ExportedModel", "FORMAT", "load"]

FORMAT = 1  # of the file; every other number is refused


class ExportedModel:
    """A model for photos of some sizes: `model(photo)` returns the labels.

    Attributes:
      sizes: (H, W) of the photos, in pixels.
      names: the K class names.
      palette: (K, 3) uint8 RGB.
      platforms: where the model runs ("cpu", "cuda", "tpu").
    """

    def __init__(self, metadata: dict[str, Any], functions: dict[str, np.ndarray], weights: dict[str, np.ndarray]):
        self.sizes = [(height, width) for height, width in metadata["sizes"]]
        self.names = tuple(metadata["classes"]["names"])
        self.palette = np.array(metadata["classes"]["palette"], np.uint8)
        self.platforms = tuple(metadata["platforms"])
        self._weights = jax.device_put(weights)
        self._functions = {}
        for height, width in self.sizes:
            exported = jax.export.deserialize(bytearray(functions[f"function_{height}x{width}"]))
            self._functions[height, width] = jax.jit(exported.call)

    def __call__(self, photo: np.ndarray) -> np.ndarray:
        """The labels (H, W) of a photo, uint8 (H, W, 3). The first photo of each size compiles the function."""
        photo = np.asarray(photo)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or photo.shape[:2] not in self._functions:
            sizes = ", ".join(f"({height}, {width}, 3)" for height, width in self.sizes)
            raise ValueError(
                f"a photo must be RGB, uint8, of one of the shapes {sizes}; this is {photo.dtype} {photo.shape}"
            )
        return np.asarray(self._functions[photo.shape[:2]](self._weights, photo))


def load(path: str | os.PathLike) -> ExportedModel:
    """Load a file, and the weights beside it if they are separate. The only code in it that runs is jax.export's.

    Raises:
      FileNotFoundError: the file does not exist, or the weights are not beside it.
      ValueError: the file is not an exported model, is of another format or a later JAX, or is damaged; or the weights
        belong to another export.
    """
    file = Path(path)
    contents = _read(file)
    if "metadata" not in contents:
        raise ValueError(f"{file}: not an exported model; python -m fasseg_jax.export writes one")
    metadata = json.loads(contents["metadata"].tobytes())
    if metadata["format"] != FORMAT:
        raise ValueError(f"{file}: has format {metadata['format']}; use load_exported.py of the version that wrote it")
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= metadata["calling_convention"] <= newest:
        raise ValueError(
            f"{file}: JAX {metadata['jax']} exported it, which JAX {jax.__version__} cannot run; export it again"
        )
    weights = contents
    if separate := metadata["weights_file"]:
        weights_file = file.with_name(separate["name"])
        if weights_file.is_file() and hashlib.sha256(weights_file.read_bytes()).hexdigest() != separate["sha256"]:
            raise ValueError(f"{weights_file}: not the weights that {file.name} was exported with, or damaged")
        weights = _read(weights_file)
    return ExportedModel(metadata, contents, {name: weights[name] for name in metadata["weights"]})


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (AttributeError, EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: damaged, or not an exported model ({error})") from error
