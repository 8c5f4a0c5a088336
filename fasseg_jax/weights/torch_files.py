"""Reads and writes files of PyTorch weights. No file is trusted: code in a file is never executed.

.pth, .pt, .bin, .pkl, .ckpt, .pth.tar  PyTorch's zip files and its older format, Detectron2's plain pickles, whichever
                                        the content is; the unpickler knows only arrays, tensors and containers
.safetensors                            the safetensors package
.index.json                             names the files (shards) that hold the weights together

Reading needs no PyTorch.
"""

import collections
import json
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from fasseg_jax.runtime.files import Path, in_bucket, local_copy, make_path, named_write_errors, write_atomically
from fasseg_jax.weights.safe_pickle import RefusedError, shorten
from fasseg_jax.weights.stand_ins import PickledArray, Tensor
from fasseg_jax.weights.torch_format import read_pickle_file, read_zip_file

__all__ = ["read_state_dict", "write_state_dict"]

ENDINGS = (".pth", ".pt", ".bin", ".pkl", ".safetensors", ".ckpt", ".pth.tar", ".index.json")

# Entries of a trainer's checkpoint that hold the state dict, in order of preference; they may be nested once.
CONTAINERS = ("model", "state_dict", "model_state_dict", "net", "params", "ema", "model_ema", "module")

# safetensors' names of the dtypes that NumPy and ml_dtypes have.
SAFETENSORS_DTYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"}

# Arrays may share memory in the file, which they no longer do as float32.
MAX_GROWTH = 3
SMALL_FILE = 1 << 20

logger = logging.getLogger(__name__)

# The versions of the official modules, as PyTorch stores them. Without them the official programs take the names for
# those of an old MaskFormer, rename them, and leave the pixel decoder at its random values.
VERSIONS = {"sem_seg_head": {"version": 2}, "sem_seg_head.predictor": {"version": 2}}


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read the weights of a file; code in it is never executed.

    Args:
      path: a file with one of `ENDINGS`, upper or lower case: a state dict, or a dictionary with one under one of
        `CONTAINERS` and whatever else a trainer stored.

    Returns:
      {PyTorch name: array} in the file's dtypes, except that bfloat16 becomes float32. Arrays of a .pth file are
      read-only views of the mapped file, so only those in use take memory.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, of another kind, holds more than data, or holds no weights. The message names
        the file and says what to do.
    """
    path = make_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    name = path.name.lower()
    if not name.endswith(ENDINGS):
        raise ValueError(f"{path}: weights are read from {', '.join(ENDINGS)} files; this is another kind")
    _refuse_failed_downloads(path)
    if name.endswith(".index.json"):
        return _read_shards(path)
    if in_bucket(path):
        with local_copy(path) as copy:  # its arrays stay readable when the copy is removed
            try:
                return read_state_dict(copy)
            except ValueError as error:
                raise ValueError(str(error).replace(str(copy), str(path))) from error
    content = _read_safetensors(path) if name.endswith(".safetensors") else _read_pickle(path)
    return _state_dict_in(content, path)


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
      WriteError: the file cannot be written.
    """
    path = make_path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{path}: weights are written as .safetensors or .pth; give the file one of these endings")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists; name another file or pass --overwrite")
    with write_atomically(path) as partial:
        partial.touch()
        permissions = partial.stat().st_mode  # those of the umask; safetensors replaces the file by a private one
        if path.suffix == ".pth":
            _save_pth(state_dict, partial, path)
        else:
            from safetensors import SafetensorError
            from safetensors.numpy import save_file

            with named_write_errors(path, (OSError, SafetensorError)):
                save_file(dict(state_dict), partial, metadata={"format": "pt"})
        partial.chmod(permissions)


def _save_pth(state_dict: Mapping[str, np.ndarray], partial: Path, file: Path) -> None:
    """Write to `partial`; messages name `file`."""
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{file.name}: PyTorch is needed to write a .pth file; write a .safetensors file, or install PyTorch with\n"
            "  pip install torch --index-url https://download.pytorch.org/whl/cpu"
        ) from None
    # Copy read-only arrays, such as those of JAX: PyTorch warns if it shares their memory.
    tensors = collections.OrderedDict(
        (name, torch.from_numpy(np.require(array, requirements="W"))) for name, array in state_dict.items()
    )
    setattr(tensors, "_metadata", VERSIONS)  # noqa: B010 (PyTorch keeps it as an attribute that the class lacks)
    with named_write_errors(file, (OSError, RuntimeError)):
        torch.save({"model": tensors}, partial)


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
        content = _unpack(_unpack(content, path), path)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{path}: holds no weights; expected a state dict or a dictionary with one under 'model' or "
            f"{', '.join(map(repr, CONTAINERS[1:-1]))} or {CONTAINERS[-1]!r}"
        )
    arrays: dict[str, np.ndarray] = {}
    left = MAX_GROWTH * max(path.stat().st_size, SMALL_FILE)
    for name, entry in content.items():
        try:
            view = _view(entry)
        except ValueError as error:
            raise ValueError(f"{path}: damaged: {shorten(name)}: {error}; download it again") from error
        if not isinstance(name, str) or view is None:
            kind = f"{type(entry).__name__}, not an array"
            if isinstance(entry, Tensor):
                kind = f"{type(entry).__name__}, not an array of a kind that is read ({entry.kind}); save it as float32"
            raise ValueError(f"{path}: the entry {shorten(repr(name))} of the state dict is a {kind}")
        is_bfloat16 = view.dtype == ml_dtypes.bfloat16
        left -= view.nbytes * (2 if is_bfloat16 else 1)
        if left < 0:
            raise ValueError(
                f"{path}: the weights are more than {MAX_GROWTH} times larger than the file, because they repeat or "
                "share its numbers; save a state dict of contiguous tensors"
            )
        # NumPy lacks bfloat16; float32 represents all its numbers exactly.
        arrays[name] = view.astype(np.float32) if is_bfloat16 else view
    return arrays


def _unpack(content: Mapping, path: Path) -> Mapping:
    """What the first of `CONTAINERS` holds; the content itself if there is none."""
    found = [entry for entry in CONTAINERS if isinstance(content.get(entry), Mapping) and content[entry]]
    if not found:
        return content
    if len(found) > 1:
        logger.warning("%s: holds weights under %s; those under %r are read.", path, " and ".join(found), found[0])
    return content[found[0]]


def _view(value: Any) -> np.ndarray | None:
    """A NumPy array from any representation of an array in the files; None for anything else."""
    if isinstance(value, PickledArray):
        return value.array
    if isinstance(value, Tensor):
        return None if value.kind else value.array()
    return np.asarray(value) if isinstance(value, np.ndarray | np.generic) else None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                dtype = file.get_slice(name).get_dtype()
                if dtype not in SAFETENSORS_DTYPES:
                    raise ValueError(
                        f"{path}: {shorten(name)} has {dtype} numbers, which are not read; save it as float32"
                    )
                arrays[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({shorten(error)}); download it again") from error
    return arrays


def _is_shard(file: Any) -> bool:
    return isinstance(file, str) and Path(file).name == file and not file.lower().endswith(".index.json")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The weights of all files that an index names."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index}: damaged or not JSON ({shorten(error)})") from error
    file_of = content.get("weight_map") if isinstance(content, dict) else None
    # Only files beside the index: a name with a folder in it could point anywhere.
    if not isinstance(file_of, dict) or any(
        not isinstance(file, str) or Path(file).name != file or file.endswith(".index.json")
        for file in file_of.values()
    ):
        raise ValueError(f"{index}: has no weight_map from names to files beside it; download it again")
    shards = {file: read_state_dict(index.parent / file) for file in sorted(set(file_of.values()))}
    if lost := [name for name, file in file_of.items() if name not in shards[file]]:
        raise ValueError(
            f"{index}: {len(lost)} of the weights are not in the files, {shorten(lost[0])} in {file_of[lost[0]]}"
        )
    return {name: shards[file][name] for name, file in file_of.items()}


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        zip_begins = file.read(4) == b"PK\x03\x04"
    try:
        return read_zip_file(path) if zip_begins else read_pickle_file(path)
    except RefusedError as error:
        raise ValueError(
            f"{path}: refused, because it holds more than weights: it asks for {str(error)!r}, and code in weight "
            "files is never executed. If you trust the file, save only its state dict with the program it comes from."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = shorten(error, 200) if type(error) in (ValueError, pickle.UnpicklingError) else type(error).__name__
        raise ValueError(
            f"{path}: damaged, cut short or not a file of weights ({reason}); download it again"
        ) from error
