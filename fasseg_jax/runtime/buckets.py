"""Paths in buckets of Google Cloud Storage: gs://BUCKET/FOLDER/FILE.

A bucket holds objects. One appears as a whole when its writer ends, and nothing can be appended to it. There are no
folders: one "exists" as long as the names of objects begin with its name.
"""

import dataclasses
import errno
import fnmatch
import io
import os
import re
import time
from collections.abc import Iterator
from typing import IO, Any

from etils.epath.gpath import PosixGPath

__all__ = ["SCHEME", "BucketPath", "ObjectRecords", "ObjectStatus", "file_system", "record_name"]

SCHEME = "gs://"
EXTRA = 'paths in buckets need gcsfs: pip install "fasseg_jax[gcs]"'
UPLOAD_SECONDS = 10  # between two objects with records; a process that is killed loses what came since the last one
PART = re.compile(r"(.+)\.(\d{8})")  # an object with records: the name of their file and a number


@dataclasses.dataclass(frozen=True)
class ObjectStatus:
    """What `stat` tells of an object; the names of `os.stat_result`, and those of etils.

    Attributes:
      st_size: bytes.
      mtime: time of the last change in seconds.
      generation: changes whenever the object is written.
      is_directory: whether this is a folder.
    """

    st_size: int
    mtime: int
    generation: str
    is_directory: bool

    @property
    def length(self) -> int:
        """Bytes."""
        return self.st_size


class BucketPath(PosixGPath):
    """A path in a bucket, with the methods of `pathlib.Path`. All errors are `OSError`s.

    It is a path of etils, which Orbax, JAX and tensorflow-datasets take. Unlike its base it never takes a name for a
    pattern, sees no stale listings, and reads an object in one request.
    """

    @property
    def storage(self) -> Any:
        """The file system; an `ImportError` names the extra if gcsfs is absent."""
        return file_system()

    @property
    def key(self) -> str:
        """BUCKET/NAME."""
        return str(self).removeprefix(SCHEME)

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    def absolute(self) -> "BucketPath":
        return self

    def exists(self) -> bool:
        return self.storage.exists(self.key)

    def is_dir(self) -> bool:
        return self.storage.isdir(self.key)

    def is_file(self) -> bool:
        try:
            return not self.stat().is_directory
        except FileNotFoundError:
            return False

    def stat(self) -> Any:
        info = self.storage.info(self.key)
        changed = info.get("mtime")
        return ObjectStatus(
            st_size=int(info.get("size") or 0),
            mtime=int(changed.timestamp()) if changed else 0,
            generation=str(info.get("generation", "")),
            is_directory=info["type"] == "directory",
        )

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Only see that the bucket is there, and can be listed."""
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        self.storage.mkdir(self.key)

    def iterdir(self) -> Iterator["BucketPath"]:
        return (path for path, _ in self._entries())

    def _entries(self) -> Iterator[tuple["BucketPath", bool]]:
        """What lies in this folder, each with whether it is a folder; one request for thousands of objects."""
        for entry in self.storage.ls(self.key, detail=True):
            key = entry["name"].rstrip("/")
            if key != self.key:  # an object of that name, which some programs make for an empty folder
                yield self / key.rpartition("/")[2], entry["type"] == "directory"

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        name, only_folders, rest = pattern.partition("/")
        if "**" in name:
            raise NotImplementedError(f"{pattern}: it would list all that is in the bucket")
        try:
            entries = list(self._entries())
        except FileNotFoundError:
            return
        for path, is_folder in entries:
            if fnmatch.fnmatchcase(path.name, name) and (is_folder or not only_folders):
                yield from path.glob(rest) if rest else [path]

    def files(self) -> list["BucketPath"]:
        """All objects below this folder, sorted; without those that stand for empty folders."""
        folder = f"{self.key}/"
        return [self / key.removeprefix(folder) for key in self._keys() if not key.endswith("/")]

    def open(self, mode: str = "r", encoding: str | None = None, errors: str | None = None, **options: Any) -> IO[Any]:
        if mode in ("r", "rt"):
            return io.StringIO(self.read_text(encoding or "utf-8"))
        if "a" in mode:
            raise OSError(errno.EOPNOTSUPP, "nothing can be appended to an object", str(self))
        return super().open(mode, encoding=encoding, errors=errors, **options)

    def read_bytes(self) -> bytes:
        return self.storage.cat_file(self.key)

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def write_bytes(self, data: bytes) -> int:
        self.storage.pipe_file(self.key, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def write_new(self, data: bytes) -> None:
        """Write an object; a `FileExistsError` if it is there already, also if another host writes it just now."""
        self.storage.write_if(self.key, data, 0)

    def upload(self, file: os.PathLike) -> None:
        """Write a local file to this object."""
        self.storage.put_file(os.fspath(file), self.key)

    def download(self, file: os.PathLike) -> None:
        """Write this object to a local file."""
        self.storage.get_file(self.key, os.fspath(file))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.storage.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self, missing_ok: bool = False) -> None:
        keys = self._keys()
        if not keys and not missing_ok:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        # What lies in the folder itself goes first: Orbax's mark of a complete checkpoint. So what is left of a folder
        # whose removal was interrupted is not taken for a complete one.
        inner = {key for key in keys if "/" in key.removeprefix(f"{self.key}/")}
        self.storage.delete_objects([key for key in keys if key not in inner])
        self.storage.delete_objects(inner)

    def _keys(self) -> list[str]:
        """The objects below this folder, also that which stands for the folder itself."""
        return [key for key in self.storage.find(self.key) if key.startswith(f"{self.key}/")]


class ObjectRecords:
    """Records in a bucket: objects NAME.00000001, NAME.00000002, ..., each of which holds one or more whole records.

    Records are held in memory for `UPLOAD_SECONDS` at most, if others come, so that a bucket gets few objects.
    """

    def __init__(self, path: BucketPath):
        """Go on after the objects that are there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._number = max((int(part.name[-8:]) for part in self.parts(path)), default=0)
        self._pending: list[bytes] = []
        self._uploaded = time.monotonic()

    @staticmethod
    def parts(path: BucketPath) -> list[BucketPath]:
        """The objects that hold the records of a file, in their order."""
        return sorted(part for part in path.parent.glob("*") if record_name(part.name) == path.name)

    def add(self, record: bytes) -> None:
        """Add a record; after an error it is tried again with the next one."""
        self._pending.append(record)
        if time.monotonic() - self._uploaded >= UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Upload what was added."""
        if not self._pending:
            return
        content = b"".join(self._pending)
        part = self._path.with_name(f"{self._path.name}.{self._number + 1:08}")
        try:
            part.write_new(content)
        except FileExistsError:
            if part.read_bytes() != content:  # the same, if only the answer to a first try was lost
                raise
        self._number += 1
        self._pending.clear()
        self._uploaded = time.monotonic()

    close = flush


def record_name(name: str) -> str:
    """The name of the file of records to which an object belongs; empty if it is another object."""
    match = PART.fullmatch(name)
    return match[1] if match else ""


def file_system() -> Any:
    """The file system of buckets; made once for each process.

    Raises:
      ImportError: gcsfs is absent; the message names the extra.
    """
    try:
        from fasseg_jax.runtime import gcs
    except ImportError as error:
        raise ImportError(f"{EXTRA} ({error})") from error
    return gcs.BucketFileSystem()
