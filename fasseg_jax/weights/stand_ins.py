"""Harmless stand-ins for the functions and classes that pickles of arrays, tensors and containers name.

NumPy's own functions are not safe: a pickle can make them build arrays of objects at addresses of its choice, with
`numpy.ndarray(shape, "O", buffer)` or by the state of a dtype. PyTorch's leave memory uninitialized if a tensor is
larger than its storage. The stand-ins only make views of the numbers in the file.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import ml_dtypes
import numpy as np

from fasseg_jax.weights.safe_pickle import Named, Opaque, RefusedError, Work, shorten

__all__ = ["PickledArray", "StandIns", "Storage", "Tensor", "storage_of"]

STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("f4"),
    "DoubleStorage": np.dtype("f8"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "ComplexFloatStorage": np.dtype("c8"),
    "ComplexDoubleStorage": np.dtype("c16"),
    "UntypedStorage": np.dtype("u1"),
}
DTYPES: dict[str, np.dtype] = {
    "torch.uint16": np.dtype("u2"),
    "torch.uint32": np.dtype("u4"),
    "torch.uint64": np.dtype("u8"),
}
A_DTYPE = re.compile(r"torch\.(q?u?int\w+|float\w*|bfloat16|bool|complex\w+|bits\w+|long|half|double|short)")


class PickledDtype:
    """Stands for `numpy.dtype`: only numbers and booleans of 1 to 8 bytes."""

    def __init__(self, code: str, *_: bool):  # pickles add the arguments `align` and `copy`
        if not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            raise RefusedError(f"numpy.dtype({shorten(code)!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the other entries concern structures


class PickledArray:
    """Stands for `numpy.ndarray`; `array` is the array itself, None until its state is read."""

    array: np.ndarray | None = None

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self.array = _array(content, dtype, shape, "F" if column_major else "C")


@dataclasses.dataclass
class Storage:
    """The numbers of tensors; `content` is their bytes, None until they are found in the file."""

    dtype: np.dtype
    size: int
    content: memoryview | None = None


@dataclasses.dataclass
class Tensor:
    """Stands for a tensor of PyTorch; without a storage for one whose kind is not read.

    Attributes:
      kind: the reason why it is not read, in words.
    """

    storage: Storage | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()  # offset and strides count numbers, not bytes
    dtype: np.dtype | None = None
    kind: str = ""

    def array(self) -> np.ndarray:
        """A view of the storage.

        Raises:
          ValueError: the tensor has numbers outside its storage.
        """
        assert self.storage is not None and self.storage.content is not None
        dtype = self.dtype or self.storage.dtype
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, dtype)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if (last + 1) * dtype.itemsize > len(self.storage.content):
            raise ValueError(f"a tensor of shape {shorten(self.shape)} is larger than its storage")
        strides = [stride * dtype.itemsize for stride in self.strides]
        return np.ndarray(self.shape, dtype, self.storage.content, self.offset * dtype.itemsize, strides)


class StandIns:
    """The stand-ins of one file. `load_storage` reads the bytes of a storage that is a pickle in the pickle."""

    def __init__(self, work: Work, load_storage: Callable[[bytes], Any] | None = None):
        self.work = work
        self.encoded: dict[int, tuple[str, bytes]] = {}
        self.functions: dict[str, Callable[..., Any]] = {**FUNCTIONS}
        self.functions["collections.OrderedDict"] = self._ordered_dict
        self.functions["_codecs.encode"] = self._encode_latin1
        if load_storage is not None:
            self.functions["torch.storage._load_from_bytes"] = load_storage

    def find(self, name: str) -> Named:
        """The stand-in for a full name."""
        if name in self.functions:
            return Named(name, self.functions[name])
        if name in INERT or A_DTYPE.fullmatch(name) or _storage_dtype(name) is not None:
            return Named(name, None)
        raise RefusedError(shorten(name))

    def _ordered_dict(self, items: Any = ()) -> collections.OrderedDict:
        pairs = list(items.items() if isinstance(items, dict) else items)
        for key, _ in pairs:
            self.work.check_key(key)
        return collections.OrderedDict(pairs)

    def _encode_latin1(self, text: str, encoding: str) -> bytes:
        """Stands for `_codecs.encode`, which makes bytes in pickles of protocol 2 from Python 3."""
        if encoding not in ("latin1", "latin-1"):
            raise RefusedError(f"_codecs.encode to {shorten(encoding)!r}")
        # A file may name the same text any number of times; its bytes are made only once.
        if id(text) not in self.encoded:
            self.encoded[id(text)] = (text, text.encode("latin1"))
        return self.encoded[id(text)][1]


def storage_of(key: Any) -> tuple[Storage, str]:
    """The storage that a persistent id describes, without its content, and its name in the file."""
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or any(key[5:]):
        raise ValueError(f"an object outside the pickle is not a storage of numbers: {type(key).__name__}")
    _, kind, name, _, size = key[:5]
    dtype = _storage_dtype(kind.name)
    if dtype is None or not isinstance(name, str) or type(size) is not int or size < 0:
        raise ValueError("a storage is described in an unknown way")
    return Storage(dtype, size), name


def _storage_dtype(name: str) -> np.dtype | None:
    module, _, kind = name.rpartition(".")
    return STORAGES.get(kind) if module in ("torch", "torch.cuda", "torch.storage") else None


def _array(content: Any, dtype: PickledDtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """An array that is a view of `content`, bytes."""
    data = content.encode("latin1") if isinstance(content, str) else content  # Python 2 pickled bytes as str
    # memoryview refuses None, for which NumPy would return whatever the memory holds.
    return np.ndarray(shape, dtype.dtype, memoryview(data), order=order)


def _reconstruct(*_: Any) -> PickledArray:
    """Stands for the function that makes an array, whose state follows."""
    return PickledArray()


def _frombuffer(content: Any, dtype: PickledDtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> PickledArray:
    """Stands for the function that makes an array in protocol 5."""
    pickled = PickledArray()
    pickled.array = _array(content, dtype, shape, order)
    return pickled


def _scalar(dtype: PickledDtype, content: bytes) -> np.generic:
    """Stands for the function that makes a NumPy scalar."""
    return _array(content, dtype, (1,), "C")[0]


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    """Stands for the function that makes a tensor."""
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor has an impossible shape")
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _tensor_of_dtype(
    storage: Storage, offset: int, shape: tuple, strides: tuple, _grad: Any, _hooks: Any, dtype: Named, *_: Any
) -> Tensor:
    """Stands for the function that makes a tensor of a dtype without a storage class, such as float8."""
    if dtype.name not in DTYPES:
        return Tensor(kind=f"{dtype.name.removeprefix('torch.')} numbers")
    tensor = _tensor(storage, offset, shape, strides)
    tensor.dtype = DTYPES[dtype.name]
    return tensor


def _parameter(tensor: Any, *_: Any) -> Any:
    """Stands for the functions that make a parameter of a tensor."""
    return tensor


def _with_attributes(make: Named, _kind: Any, arguments: tuple, *_: Any) -> Any:
    """Stands for the function that makes a tensor with attributes; these are not read."""
    if make.function not in (_tensor, _tensor_of_dtype, _parameter, _unread_tensor):
        raise RefusedError(make.name)
    return make.function(*arguments)


def _unread_tensor(*_: Any) -> Tensor:
    return Tensor(kind="a sparse, quantized or otherwise special layout")


# Name in a pickle -> stand-in. The modules of NumPy 1 and 2 have different names.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch._utils._rebuild_sparse_tensor": _unread_tensor,
    "torch._utils._rebuild_nested_tensor": _unread_tensor,
    "torch._utils._rebuild_qtensor": _unread_tensor,
    "torch._utils._rebuild_meta_tensor_no_storage": _unread_tensor,
    "torch._utils._rebuild_wrapper_subclass": _unread_tensor,
    **dict.fromkeys(
        (
            *("collections.Counter", "torch.Size", "torch.device", "torch.serialization._get_layout"),
            *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("set", "bytearray", "complex")),
        ),
        Opaque,
    ),
}
for _core in ("numpy.core", "numpy._core"):
    FUNCTIONS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    FUNCTIONS[f"{_core}.multiarray.scalar"] = _scalar
    FUNCTIONS[f"{_core}.numeric._frombuffer"] = _frombuffer

# Names that a pickle may give as arguments, but not call.
INERT = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter", "torch.per_tensor_affine"}
