"""Harmless stand-ins for the functions and classes that pickles of arrays and containers name.

NumPy's own functions are not safe: a pickle can make them build arrays of objects at addresses of its choice, with
`numpy.ndarray(shape, "O", buffer)` or by the state of a dtype. The stand-ins only make arrays of numbers.
"""

import collections
import pickle
import re
from typing import Any, Literal

import numpy as np

__all__ = ["HARMLESS", "PickledArray", "RefusedError"]


class RefusedError(pickle.UnpicklingError):
    """A pickle names something other than numbers and containers; the message is that name."""


class PickledDtype:
    """Stands for `numpy.dtype`: only numbers and booleans of 1 to 8 bytes."""

    def __init__(self, code: str, *_: bool):  # pickles add the arguments `align` and `copy`
        if not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            raise RefusedError(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the other entries concern structures


class PickledArray:
    """Stands for `numpy.ndarray`; `array` is the array itself."""

    array: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self.array = _array(content, dtype, shape, "F" if column_major else "C")


def _array(content: Any, dtype: PickledDtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """An array that is a view of `content`, bytes."""
    data = content.encode("latin1") if isinstance(content, str) else content  # Python 2 pickled bytes as str
    # memoryview refuses None, for which NumPy would return whatever the memory holds.
    return np.ndarray(shape, dtype.dtype, memoryview(data), order=order)


def _reconstruct(kind: type, shape: tuple, code: bytes) -> PickledArray:
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


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, which makes bytes in pickles of protocol 2 from Python 3."""
    if encoding != "latin1":
        raise RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


# Name in a pickle -> stand-in. The modules of NumPy 1 and 2 have different names.
HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode_latin1,
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
}
for _core in ("numpy.core", "numpy._core"):
    HARMLESS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    HARMLESS[f"{_core}.multiarray.scalar"] = _scalar
    HARMLESS[f"{_core}.numeric._frombuffer"] = _frombuffer
