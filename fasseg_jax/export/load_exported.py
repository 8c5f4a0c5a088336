"""Run a model that `python -m fasseg_jax.export` wrote.

Needs JAX, flatbuffers (`pip install jax flatbuffers`) and NumPy alone: this file may be copied to wherever it serves.

    from load_exported import load

    model = load("model.npz")
    labels = model(photo)  # uint8 (H, W, 3), RGB, one of model.sizes -> (H, W), class ids
    names, colours = model.names, model.palette[labels]
"""

import hashlib
import json
import zipfile
from pathlib import Path

import jax
import jax.export
import numpy as np

__all__ = ["ExportedModel", "FORMAT", "load"]

FORMAT = 1  # of the file; a program that does not know a number refuses it


class ExportedModel:
    """A model for photos of some sizes: `model(photo)` -> labels.

    Attributes:
      sizes: (H, W) of the photos, in pixels.
      names: the K class names.
      palette: (K, 3) uint8 RGB.
      platforms: on which it runs ("cpu", "cuda", "tpu").
    """

    def __init__(self, metadata: dict, functions: dict[str, np.ndarray], weights: dict[str, np.ndarray]):
        self.sizes = [tuple(size) for size in metadata["sizes"]]
        self.names = tuple(metadata["classes"]["names"])
        self.palette = np.array(metadata["classes"]["palette"], np.uint8)
        self.platforms = tuple(metadata["platforms"])
        self._weights = jax.device_put(weights)
        self._functions = {}
        for height, width in self.sizes:
            exported = jax.export.deserialize(bytearray(functions[f"function_{height}x{width}"]))
            self._functions[height, width] = jax.jit(exported.call)

    def __call__(self, photo: np.ndarray) -> np.ndarray:
        """Labels (H, W) of a photo, uint8 (H, W, 3); compiled at the first photo of a size."""
        photo = np.asarray(photo)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or photo.shape[:2] not in self._functions:
            sizes = ", ".join(f"({height}, {width}, 3)" for height, width in self.sizes)
            raise ValueError(f"a photo must be RGB, uint8, of a shape in {sizes}; this is {photo.dtype} {photo.shape}")
        return np.asarray(self._functions[photo.shape[:2]](self._weights, photo))


def load(path: str) -> ExportedModel:
    """Load a file, and the weights beside it if they are separate; no code but that of jax.export is executed.

    Raises:
      FileNotFoundError: no such file, or no weights beside it.
      ValueError: not such a file, one of a later format or a later JAX, a damaged one, or weights of another export.
    """
    path = Path(path)
    contents = _read(path)
    if "metadata" not in contents:
        raise ValueError(f"{path}: no exported model; python -m fasseg_jax.export writes one")
    metadata = json.loads(contents["metadata"].tobytes())
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path}: of format {metadata['format']}; take the loader of the version that wrote it")
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= metadata["calling_convention"] <= newest:
        raise ValueError(f"{path}: of JAX {metadata['jax']}, which JAX {jax.__version__} cannot run; export it anew")
    weights = contents
    if metadata["weights_file"]:
        file = path.with_name(metadata["weights_file"]["name"])
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != metadata["weights_file"]["sha256"]:
            raise ValueError(f"{file}: not the weights that {path.name} was exported with, or damaged")
        weights = _read(file)
    return ExportedModel(metadata, contents, {name: weights[name] for name in metadata["weights"]})


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (AttributeError, EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged, or no exported model ({error})") from error
