"""The file system of Google Cloud Storage: gcsfs, with settings and errors that suit programs.

Importing this module needs gcsfs, and lets all libraries that use fsspec take the file system of this module.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import uuid
from collections.abc import Iterable
from typing import Any

import aiohttp
import fsspec
import google.auth.exceptions
import requests
from fsspec.asyn import sync_wrapper
from gcsfs.core import GCSFileSystem
from gcsfs.retry import ChecksumError, HttpError

__all__ = ["BucketFileSystem"]

# For one request; gcsfs repeats it five times, with pauses of half a minute together.
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
DELETED_AT_ONCE = 32  # objects
LOGIN = "log in with `gcloud auth application-default login`, or give this machine a service account"
ROLE = "ask for the role Storage Object User in this bucket"

ERRORS = (
    *(HttpError, ChecksumError, aiohttp.ClientError, asyncio.TimeoutError, google.auth.exceptions.GoogleAuthError),
    *(requests.RequestException, OSError, ValueError, RuntimeError),
)


class BucketFileSystem(GCSFileSystem):
    """Raises only `OSError`s, which name the object and the reason; never makes a bucket; remembers no listings."""

    def __init__(self, **options: Any):
        """Log in, or not if an emulator is used."""
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of the errors that it raises
        if os.environ.get("STORAGE_EMULATOR_HOST"):
            options = {"token": "anon", **options}
        super().__init__(**{"use_listings_cache": False, "requests_timeout": TIMEOUT, **options})

    async def _call(self, method: str, path: str, *args: Any, **options: Any) -> Any:
        try:
            return await super()._call(method, path, *args, **options)
        except ERRORS as error:
            raise os_error(error, f"gs://{'/'.join(args)}" if args else path.partition("?")[0]) from error

    async def _get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        try:
            await super()._get_file(rpath, lpath, **options)
        except ERRORS as error:
            raise os_error(error, f"gs://{rpath}") from error

    async def _isdir(self, path: str) -> bool:
        try:
            return (await self._info(path))["type"] == "directory"
        except FileNotFoundError:
            return False

    async def _mkdir(self, path: str, create_parents: bool = False, **_: Any) -> None:
        """There are no folders to make; only the bucket must exist."""
        bucket, _, _ = self.split_path(path)
        try:
            await self._call("GET", "b/{}/o", bucket, maxResults=1)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, f"there is no bucket {bucket}; correct the name, or make the bucket first", f"gs://{path}"
            ) from None

    mkdir = sync_wrapper(_mkdir)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await self._mkdir(path)

    makedirs = sync_wrapper(_makedirs)

    async def _delete_objects(self, paths: Iterable[str]) -> None:
        """Delete objects, by their exact names; those that are not there are left out."""
        gate = asyncio.Semaphore(DELETED_AT_ONCE)

        async def delete(path: str) -> None:
            async with gate:
                with contextlib.suppress(FileNotFoundError):
                    await self._rm_file(path)

        await asyncio.gather(*map(delete, paths))

    delete_objects = sync_wrapper(_delete_objects)

    async def _write_if(self, path: str, content: bytes, generation: int | str) -> str:
        """Write an object if its generation is the given one, 0 if it does not exist.

        Returns:
          The new generation.

        Raises:
          FileExistsError: the object has another generation.
        """
        bucket, key, _ = self.split_path(path)
        boundary = uuid.uuid4().hex.encode()
        types = b"application/json; charset=UTF-8", b"application/octet-stream"
        parts = json.dumps({"name": key}).encode(), content
        body = [
            b"--%b\r\nContent-Type: %b\r\n\r\n%b\r\n" % (boundary, *pair) for pair in zip(types, parts, strict=True)
        ]
        answer = await self._call(
            "POST",
            f"{self._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="multipart",
            ifGenerationMatch=str(generation),
            headers={"Content-Type": f"multipart/related; boundary={boundary.decode()}"},
            data=b"".join([*body, b"--%b--" % boundary]),
            json_out=True,
        )
        return str(answer["generation"])

    write_if = sync_wrapper(_write_if)


def os_error(error: BaseException, name: str) -> OSError:
    """The error as an `OSError` with a reason in one line and the name of what it is about."""
    text = " ".join(str(error).split())[:200]
    code = getattr(error, "code", None)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "another process has written it", name)
    if code == 401 or isinstance(error, google.auth.exceptions.GoogleAuthError):
        return PermissionError(errno.EACCES, f"access is refused ({text}); {LOGIN}", name)
    if text.startswith("Forbidden"):
        return PermissionError(errno.EACCES, f"access is refused ({text.rpartition('/o')[2] or text}); {ROLE}", name)
    if isinstance(error, aiohttp.ClientError | asyncio.TimeoutError | requests.RequestException):
        reason = f"the storage does not answer ({text or type(error).__name__}); is the network there?"
        return OSError(errno.EHOSTUNREACH, reason, name)  # fsspec would replace a `TimeoutError` by one without words
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, error.strerror or text, name)
    return OSError(errno.EIO, f"the storage refuses ({text or type(error).__name__})", name)


for protocol in ("gs", "gcs"):
    fsspec.register_implementation(protocol, BucketFileSystem, clobber=True)
