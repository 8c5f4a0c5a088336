"""Reads and writes files of PyTorch weights. No file is trusted: code in a file is never executed.

.pth, .pt, .bin torch.load(weights_only=True), memory-mapped if the format allows it; needs PyTorch
.pkl            Detectron2's plain pickles; the unpickler knows only arrays, tensors and containers
.safetensors    the safetensors package
"""

import collections
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.weights.safe_pickle import HARMLESS, PickledArray, RefusedError

__all__ = ["read_state_dict", "write_state_dict"]

# The versions of the official modules, as PyTorch stores them. Without them the official programs take the names for
# those of an old MaskFormer, rename them, and leave the pixel decoder at its random values.
VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a file; code in it is never executed.

    Args:
      path: a .pth, .pt, .bin, .pkl or .safetensors file: a state dict, or a dictionary with one under "model" or
        "state_dict" and whatever else a trainer stored.

    Returns:
      {PyTorch name: array} in the file's dtypes, except that bfloat16 becomes float32. Arrays of a .pth file are views
      of the mapped file if possible, so only those in use take memory.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: the file is a .pth or .pt file (or a .pkl with tensors), and PyTorch is not installed.
      ValueError: the file is damaged, of another kind, holds more than data, or holds no weights. The message names
        the file and says what to do.
    """
    path = Path(path)
    readers = {
        ".pth": _read_torch,
        ".pt": _read_torch,
        ".bin": _read_torch,
        ".pkl": _read_pickle,
        ".safetensors": _read_safetensors,
    }
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix not in readers:
        raise ValueError(f"{path}: weights are read from {', '.join(readers)} files; this is another kind")
    _refuse_failed_downloads(path)
    return _state_dict_in(readers[path.suffix](path), path)


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray], overwrite: bool = False) -> None:
    """Write weights; the file appears only when it is complete.

    Args:
      path: a .safetensors file, or a .pth file, which gets the state dict under "model", as Detectron2 expects it, and
        the versions of the modules. A .safetensors file cannot hold these.
      state_dict: {PyTorch name: contiguous array}.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and must not be replaced.
      ImportError: the file is a .pth file, and PyTorch is not installed.
      ValueError: the file has another ending.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{path}: weights are written as .safetensors or .pth; give the file one of these endings")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists; name another file or pass --overwrite")
    with write_atomically(path) as partial:
        partial.touch()
        permissions = partial.stat().st_mode  # those of the umask; safetensors replaces the file by a private one
        if path.suffix == ".pth":
            _save_pth(state_dict, partial)
        else:
            from safetensors.numpy import save_file

            save_file(dict(state_dict), partial, metadata={"format": "pt"})
        partial.chmod(permissions)


def _save_pth(state_dict: Mapping[str, np.ndarray], file: Path) -> None:
    torch = _import_torch(file)
    # Copy read-only arrays, such as those of JAX: PyTorch warns if it shares their memory.
    tensors = collections.OrderedDict(
        (name, torch.from_numpy(np.require(array, requirements="W"))) for name, array in state_dict.items()
    )
    setattr(tensors, "_metadata", VERSIONS)  # noqa: B010 (PyTorch keeps it as an attribute that the class lacks)
    torch.save({"model": tensors}, file)


def _refuse_failed_downloads(path: Path) -> None:
    """Raise an error for a file that a failed download leaves behind."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: the file is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path}: a git-lfs pointer, not the weights; fetch them with `git lfs pull`")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path}: a web page, not weights; download the file itself, not the page that offers it")


def _state_dict_in(content: Any, path: Path) -> dict[str, np.ndarray]:
    """The state dict in the contents of a file, as arrays."""
    if isinstance(content, Mapping):
        if "blobs" in content or "conv1_w" in content:
            raise ValueError(
                f"{path}: Caffe-style (MSRA) ResNet weights, made for BGR images and strides in the 1x1 "
                "convolutions; use torchvision's ResNet weights, as a .pth or as Detectron2's torchvision/R-*.pkl"
            )
        for entry in ("model", "state_dict"):
            if isinstance(content.get(entry), Mapping):
                content = content[entry]
                break
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path}: holds no weights; expected a state dict or a dictionary with one under 'model' or 'state_dict'"
        )
    arrays = {}
    for name in list(content):
        value = _as_array(content[name])
        if not isinstance(name, str) or value is None:
            raise ValueError(
                f"{path}: the entry {name!r} of the state dict is a {type(content[name]).__name__}, not an array"
            )
        arrays[name] = value
    return arrays


def _as_array(value: Any) -> np.ndarray | None:
    """A NumPy array from any representation of an array in the files; None for anything else."""
    if isinstance(value, PickledArray):
        return value.array
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value, np.float32 if value.dtype == ml_dtypes.bfloat16 else None)
    if hasattr(value, "detach"):  # a tensor; PyTorch is optional, so its class cannot be named here
        value = value.detach()
        if str(value.dtype) == "torch.bfloat16":  # NumPy lacks it; float32 represents all its numbers exactly
            value = value.float()
        try:
            return value.numpy()
        except (TypeError, RuntimeError):  # sparse or quantized
            return None
    return None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); download it again") from error


def _import_torch(path: Path) -> Any:
    needed = ImportError(
        f"{path}: PyTorch 2.10 or newer is needed for this file; install it with\n"
        '  pip install "torch>=2.10" --index-url https://download.pytorch.org/whl/cpu'
    )
    try:
        import torch
    except ImportError:
        raise needed from None
    # In earlier versions a malicious file can execute code in spite of weights_only=True (CVE-2025-32434 before 2.6,
    # CVE-2026-24747 before 2.10).
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        raise needed
    return torch


def _read_torch(path: Path) -> Any:
    torch = _import_torch(path)
    with path.open("rb") as file:
        zip_begins = file.read(4) == b"PK\x03\x04"
    # A zip file has its directory at the end, so a file that is cut short still begins like one.
    zip_complete = zipfile.is_zipfile(path)
    if zip_begins and not zip_complete:
        raise ValueError(f"{path}: the file is cut short; download it again")
    try:
        # Trainers store NumPy numbers beside the weights.
        with torch.serialization.safe_globals([(value, name) for name, value in HARMLESS.items()]):
            # Only the zip format, which PyTorch writes since version 1.6, can be memory-mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zip_complete)
    except Exception as error:  # a damaged pickle can raise anything
        raise _unreadable(path, error) from error


class _DataUnpickler(pickle.Unpickler):
    """Unpickles only data: it refuses every other name in a file, before anything is called."""

    def __init__(self, file: io.BufferedReader, path: Path):
        super().__init__(file, encoding="latin1")  # for arrays that Python 2 pickled
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in HARMLESS:
            return HARMLESS[full_name]
        if full_name == "torch._utils._rebuild_tensor_v2":
            return _import_torch(self.path)._utils._rebuild_tensor_v2  # weights_only=True allows it as well
        if full_name == "torch.storage._load_from_bytes":
            # PyTorch's own function of this name would unpickle the bytes without restrictions.
            _import_torch(self.path)
            return _load_storage
        raise RefusedError(full_name)


def _load_storage(content: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _DataUnpickler(file, path).load()
    except ImportError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    """The error for a file that cannot be unpickled. It leaves out PyTorch's advice to trust the file."""
    refused = [str(error)] if isinstance(error, RefusedError) else re.findall(r"(?:GLOBAL|global) (\S+)", str(error))
    if refused:
        return ValueError(
            f"{path}: refused, because it holds more than weights: it asks for {refused[0]!r}, and code in weight "
            "files is never executed. If you trust the file, save only its state dict with the program it comes from."
        )
    lines = re.findall(r"WeightsUnpickler error:\s*(.+)", str(error)) or str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return ValueError(f"{path}: damaged, cut short or not a file of weights ({reason}); download it again")
