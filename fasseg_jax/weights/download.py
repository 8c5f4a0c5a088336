"""Downloads a file by its address into a cache; a download that was cut goes on where it stopped."""

import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request

from tqdm import tqdm

from fasseg_jax.runtime.files import Path, WriteError, named_write_errors, write_atomically
from fasseg_jax.runtime.folder_lock import lock_folder

__all__ = ["RemoteError", "cache_folder", "download"]

CHUNK = 1 << 20  # bytes
TIMEOUT = 30.0  # seconds without any byte
ATTEMPTS = 5  # in a row that bring nothing new

# Certificates and proxies are the system's: urllib reads SSL_CERT_FILE, HTTPS_PROXY and NO_PROXY.


class RemoteError(OSError):
    """Something cannot be fetched. The message, one line, names it and says what to do."""


def cache_folder() -> Path:
    """Where downloads are kept: $FASSEG_CACHE, or a folder below the user's folder of caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("FASSEG_CACHE") or Path(caches, "fasseg_jax", "downloads")).expanduser()


def download(address: str) -> Path:
    """Download a file, unless the cache holds it.

    Args:
      address: "https://HOST/PATH/FILE", or the same with "#sha256=CHECKSUM". Only with a checksum it may be "http://".

    Returns:
      The file in the cache, of the same name.

    Raises:
      RemoteError: the address is wrong, the server refuses or cannot be reached, or the file has another checksum.
      WriteError: the cache cannot be written.
    """
    url, checksum = _parse(address)
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    file, partial = folder / name, folder / f"{name}.partial"
    with named_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(folder)
    except ValueError as error:
        raise RemoteError(f"{url}: another process downloads it at this moment") from error
    with lock:
        if not file.is_file():
            _complete(url, partial)
            _check(partial, url, checksum)
            with named_write_errors(file):
                partial.replace(file)
        else:
            _check(file, url, checksum)
    return file


def _parse(address: str) -> tuple[str, str]:
    """The address without its fragment, and the checksum, empty if there is none."""
    url, _, fragment = address.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not match:
        raise RemoteError(f"{url}: after # it must say sha256= and 64 hexadecimal digits, not {fragment[:80]!r}")
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or Path(urllib.parse.unquote(parts.path)).name in ("", ".", ".."):
        raise RemoteError(f"{url}: names no file; give https://HOST/PATH/FILE")
    if parts.scheme != "https" and not match:
        raise RemoteError(f"{url}: without https anyone may change the file on its way; add #sha256=CHECKSUM")
    return url, match[1].lower() if match else ""


def _complete(url: str, partial: Path) -> None:
    """Download to `partial`, from where it ends; each attempt that brings something new is followed by another."""
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _attempt(url, partial, before):
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # what is there is no beginning of the file
                partial.unlink()
            elif error.code not in (429, 500, 502, 503, 504):
                raise RemoteError(f"{url}: {_refusal(error.code)}") from error
            problem = _refusal(error.code)
        except WriteError:
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            problem = f"cannot be reached ({' '.join(str(reason).split())[:150]})"
        size = partial.stat().st_size if partial.exists() else 0
        failures = failures + 1 if size <= before else 0
        if failures >= ATTEMPTS or (failures and not size):
            there = f" after {size / 1e6:.1f} MB; the same command goes on from there" if size else ""
            raise RemoteError(f"{url}: {problem}{there}")


def _refusal(code: int) -> str:
    meaning = {401: "it needs a login", 403: "access is forbidden", 404: "there is no such file"}
    return f"{meaning.get(code, 'the server refuses')} (HTTP {code})"


def _attempt(url: str, partial: Path, begin: int) -> bool:
    """Append the rest of the file to `partial`; whether it is complete then."""
    memo = partial.with_name(f"{partial.name}.json")  # which version of the file the beginning is of
    version = json.loads(memo.read_text()).get("version") if begin and memo.is_file() else None
    headers = {"User-Agent": "fasseg_jax", "Accept-Encoding": "identity"}
    if version:
        headers |= {"Range": f"bytes={begin}-", "If-Range": version}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
        begin = begin if resumed else 0
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length and length.isdecimal() else None
        tag = response.headers.get("ETag", "W/")
        version = response.headers.get("Last-Modified") if tag.startswith("W/") else tag
        with write_atomically(memo) as new:
            new.write_text(json.dumps({"version": version}))
        title = urllib.parse.urlsplit(url).path.rpartition("/")[2]
        with (
            named_write_errors(partial),
            partial.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=begin, unit="B", unit_scale=True, desc=title, disable=None) as progress,
        ):
            while chunk := _read(response):
                file.write(chunk)
                progress.update(len(chunk))
            end = file.tell()
    return chunk is not None and total in (None, end)


def _read(response: http.client.HTTPResponse) -> bytes | None:
    """The next bytes, none at the end; None if the connection is cut."""
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException):
        return None


def _check(file: Path, url: str, checksum: str) -> None:
    """Compare a file with its checksum, if there is one; a file that differs is deleted."""
    if not checksum:
        return
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != checksum:
        file.unlink()
        raise RemoteError(f"{url}: its sha256 is {found}, not {checksum}; the download is deleted")
