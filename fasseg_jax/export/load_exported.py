"""Run a model that `python -m fasseg_jax.export` wrote.

This file needs only JAX, NumPy and flatbuffers (`pip install jax flatbuffers`), so you can copy it into any program.

    from load_exported import load

    model = load("model.npz")
    labels = model(photo)  # uint8 (H, W, 3), RGB, one of model.sizes -> (H, W), class ids
    names, colors = model.names, model.palette[labels]

The first photo of a size compiles its function. `load` has JAX keep the programs on disk, so that the next start loads
them.
"""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

__all__ = ["ExportedModel", "FORMAT", "load"]

FORMAT = 1  # of the file; every other number is refused
MAX_RATIO = 3  # of what a file decompresses to; weights hardly shrink


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

    Compiled programs are kept in ~/.cache/fasseg_jax, unless JAX_COMPILATION_CACHE_DIR or jax.config names another
    folder.

    Raises:
      FileNotFoundError: the file does not exist, or the weights are not beside it.
      ValueError: the file is not an exported model, is of another format or a later JAX, or is damaged; or the weights
        belong to another export.
    """
    file = Path(path)
    contents = _read(file)
    if "metadata" not in contents:
        raise ValueError(f"{file}: not an exported model; python -m fasseg_jax.export writes one")
    metadata = _metadata(file, contents["metadata"].tobytes())
    weights = contents
    if separate := metadata["weights_file"]:
        weights_file = file.with_name(separate["name"])
        if weights_file.is_file() and hashlib.sha256(weights_file.read_bytes()).hexdigest() != separate["sha256"]:
            raise ValueError(f"{weights_file}: not the weights that {file.name} was exported with, or damaged")
        weights = _read(weights_file)
    _keep_programs()
    try:
        return ExportedModel(metadata, contents, {name: weights[name] for name in metadata["weights"]})
    except Exception as error:  # jax.export raises nearly anything for damaged bytes
        raise _damaged(file, error) from error


def _keep_programs() -> None:
    """Turn JAX's cache on disk on, unless the program has."""
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        folder = Path.home() / ".cache" / "fasseg_jax"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # a `RuntimeError` if the user has no home
        message = f"compiled programs are not kept ({error}); JAX_COMPILATION_CACHE_DIR names a folder for them"
        warnings.warn(message, stacklevel=3)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()  # JAX has looked for the folder if it compiled anything before


def _metadata(file: Path, text: bytes) -> dict[str, Any]:
    """The metadata, of which every field that is read has its kind."""
    try:
        metadata = json.loads(text)
        if metadata["format"] == FORMAT:
            _check_kinds(metadata)
    except Exception as error:
        raise _damaged(file, error) from error
    if metadata["format"] != FORMAT:
        version = str(metadata["format"])[:20]
        raise ValueError(f"{file}: has format {version}; use load_exported.py of the version that wrote it")
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= metadata["calling_convention"] <= newest:
        version = str(metadata["jax"])[:20]
        raise ValueError(f"{file}: JAX {version} exported it, which JAX {jax.__version__} cannot run; export it again")
    return metadata


def _check_kinds(metadata: dict[str, Any]) -> None:
    names, palette = metadata["classes"]["names"], np.array(metadata["classes"]["palette"])
    separate = metadata["weights_file"]
    right = {
        "format": type(metadata["format"]) is int,
        "jax": isinstance(metadata["jax"], str),
        "calling_convention": type(metadata["calling_convention"]) is int,
        "sizes": _is_list(metadata["sizes"], list)
        and all(len(size) == 2 and _is_list(size, int) and min(size) > 0 for size in metadata["sizes"]),
        "classes": _is_list(names, str)
        and palette.shape == (len(names), 3)
        and palette.dtype == np.int64
        and 0 <= palette.min() <= palette.max() <= 255,
        "platforms": _is_list(metadata["platforms"], str),
        "weights": _is_list(metadata["weights"], str),
        # A file beside this one, not anywhere else.
        "weights_file": separate is None
        or (isinstance(separate["sha256"], str) and Path(separate["name"]).name == separate["name"] != ""),
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        raise ValueError(f"wrong metadata: {', '.join(wrong)}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(record.file_size for record in archive.infolist()) > MAX_RATIO * file.stat().st_size:
                raise ValueError(f"decompresses to more than {MAX_RATIO} times its size")
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # zipfile and NumPy raise nearly anything for damaged bytes
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(f"{file}: damaged, or not an exported model ({reason[:200]})")
