"""What pickles of arrays and containers name, rebuilt from untrusted data.

NumPy's own functions will not do: a pickle can make them build arrays of objects at addresses of its choice, with
`numpy.ndarray(shape, "O", buffer)` or by the state of a dtype. The stand-ins know numbers alone.
"""

import collections
import pickle
import re
from typing import Any

import numpy as np

__all__ = ["HARMLESS", "PickledArray", "RefusedError"]


class RefusedError(pickle.UnpicklingError):
    """A pickle asks for something that is neither numbers nor containers; the message is its name."""


class PickledDtype:
    """In place of `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
            raise RefusedError(f"numpy.dtype({code!r})")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest is about structures


class PickledArray:
    """In place of `numpy.ndarray`; `array` is the array itself."""

    array: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, content = state
        self._set(content, dtype, shape, "F" if column_major else "C")

    def _set(self, content: Any, dtype: PickledDtype, shape: tuple[int, ...], order: str) -> None:
        if isinstance(content, str):  # bytes of Python 2
            content = content.encode("latin1")
        # memoryview refuses None, for which NumPy would take whatever the memory holds.
        self.array = np.ndarray(shape, dtype.dtype, memoryview(content), order=order)


def _reconstruct(kind: type, shape: tuple, code: bytes) -> PickledArray:
    """In place of the function that makes the array whose state follows."""
    return PickledArray()


def _frombuffer(content: Any, dtype: PickledDtype, shape: tuple[int, ...], order: str) -> PickledArray:
    """In place of the function that protocol 5 names."""
    array = PickledArray()
    array._set(content, dtype, shape, order)
    return array


def _scalar(dtype: PickledDtype, content: bytes) -> np.generic:
    return _frombuffer(content, dtype, (1,), "C").array[0]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """In place of `_codecs.encode`, by which Python 3 writes bytes into pickles of protocol 2."""
    if encoding != "latin1":
        raise RefusedError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


# By the names in pickles; NumPy 1 and 2 have modules of their own.
HARMLESS = {
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode_latin1,
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
}
for _core in ("numpy.core", "numpy._core"):
    HARMLESS[f"{_core}.multiarray._reconstruct"] = _reconstruct
    HARMLESS[f"{_core}.multiarray.scalar"] = _scalar
    HARMLESS[f"{_core}.numeric._frombuffer"] = _frombuffer
