"""Reads the two formats of `torch.save` without PyTorch: zip files, and the pickles of versions before 1.6.

Arrays are views of the mapped file, so only those in use take memory.
"""

import io
import mmap
import struct
import sys
import zipfile
from typing import Any

import numpy as np

from fasseg_jax.runtime.files import Path
from fasseg_jax.weights.safe_pickle import DataUnpickler, Work, shorten
from fasseg_jax.weights.stand_ins import StandIns, Storage, storage_of

__all__ = ["read_pickle_file", "read_zip_file"]

NATIVE = "<" if sys.byteorder == "little" else ">"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip record; the lengths of its name and of its extra field
DIRECTORY_BYTES, MAX_RECORDS = 8 << 20, 50_000


def map_file(path: Path) -> mmap.mmap:
    """The file as memory that is read when it is used."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def read_zip_file(path: Path) -> Any:
    """The contents of a file in the format of PyTorch 1.6 and later.

    Raises:
      RefusedError: the file holds more than data.
      Exception: of any type, because the file is damaged.
    """
    mapped = map_file(path)
    if mapped[-DIRECTORY_BYTES:].count(b"PK\1\2") > MAX_RECORDS:
        raise ValueError("its directory has an absurd number of records")
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("a zip file that PyTorch did not write: it has no record 'data.pkl'")
    folder = pickles[0].removesuffix("data.pkl")
    order = "<"
    if (byteorder := records.get(folder + "byteorder")) is not None:
        order = ">" if bytes(_record(mapped, byteorder)) == b"big" else "<"
    storages: dict[str, Storage] = {}

    def find_storage(key: Any) -> Storage:
        storage, name = storage_of(key)
        if name not in storages:
            record = records.get(f"{folder}data/{name}")
            if record is None:
                raise ValueError(f"its record data/{shorten(name)} is missing")
            storage.content = _record(mapped, record)
            _check_size(storage, name)
            storage.dtype = _ordered(storage.dtype, order)
            storages[name] = storage
        return storages[name]

    work = Work()
    content = io.BytesIO(_record(mapped, records[pickles[0]]))
    return DataUnpickler(content, StandIns(work).find, work, find_storage).load()


def _record(mapped: mmap.mmap, record: zipfile.ZipInfo) -> memoryview:
    """The bytes of a record, which must not be compressed: PyTorch never compresses."""
    name = shorten(record.filename)
    if record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 or record.compress_size != record.file_size:
        raise ValueError(f"its record {name!r} is compressed or encrypted, unlike PyTorch's")
    begin = record.header_offset
    magic, *lengths = LOCAL_HEADER.unpack(mapped[begin : begin + LOCAL_HEADER.size])
    begin += LOCAL_HEADER.size + sum(lengths)
    if magic != b"PK\3\4" or begin + record.file_size > len(mapped):
        raise ValueError(f"its record {name!r} is not where the directory says")
    return memoryview(mapped)[begin : begin + record.file_size]


def _check_size(storage: Storage, name: str) -> None:
    assert storage.content is not None
    expected = storage.size * storage.dtype.itemsize
    if len(storage.content) != expected:
        raise ValueError(f"its storage {shorten(name)} has {len(storage.content)} bytes, not {expected}")


def _ordered(dtype: np.dtype, order: str) -> np.dtype:
    """The dtype with the byte order of the file; bfloat16 has only that of the machine."""
    return dtype if order == NATIVE else dtype.newbyteorder(">" if order == ">" else "<")


def read_pickle_file(path: Path) -> Any:
    """The contents of a plain pickle, or of a file in the format of PyTorch before 1.6; raises as `read_zip_file`."""
    mapped = map_file(path)
    return _read_pickles(mapped, memoryview(mapped), Work(), nested=False)


def _read_pickles(file: Any, content: memoryview, work: Work, nested: bool) -> Any:
    """`file` reads the bytes of `content`."""

    def load_storage(inner: bytes) -> Any:
        # The pickle of a storage in a pickle: the format before 1.6 again.
        return _read_pickles(io.BytesIO(inner), memoryview(inner), work, nested=True)

    find = StandIns(work, None if nested else load_storage).find
    first = DataUnpickler(file, find, work).load()
    if type(first) is not int or first != LEGACY_MAGIC:
        if nested:
            raise ValueError("a storage in the pickle is not in PyTorch's format")
        return first
    DataUnpickler(file, find, work).load()  # the version of the format
    system = DataUnpickler(file, find, work).load()
    storages: dict[str, Storage] = {}

    def find_storage(key: Any) -> Storage:
        storage, name = storage_of(key)
        return storages.setdefault(name, storage)

    loaded = DataUnpickler(file, find, work, find_storage).load()
    names = DataUnpickler(file, find, work).load()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the list of its storages is damaged")
    if len(set(names)) != len(names) or set(names) != storages.keys():
        raise ValueError("the list of its storages is not complete")
    position, order = file.tell(), "<" if system["little_endian"] else ">"
    for name in names:
        storage = storages[name]
        (size,) = struct.unpack(f"{order}q", content[position : position + 8])
        begin, position = position + 8, position + 8 + storage.size * storage.dtype.itemsize
        storage.content = content[begin:position]
        if size != storage.size:
            raise ValueError(f"its storage {shorten(name)} has {size} numbers, not {storage.size}")
        _check_size(storage, name)
        storage.dtype = _ordered(storage.dtype, order)
    return loaded
