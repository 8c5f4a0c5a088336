"""A web page for trying a model: drop a photo, see its classes."""

import base64
import dataclasses
import io
import ipaddress
import json
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from fasseg_jax.data.images import PhotoError, open_photo
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.files import Path
from fasseg_jax.visualization.legend import class_shares

__all__ = ["DemoServer", "Limits"]

PAGE = Path(__file__).with_name("demo.html")
# Only these are tried on uploads: other formats of Pillow start programs (EPS) or are hardly ever exercised.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_DISCARDED = 256 << 20  # bytes of a refused upload that are read, unused, before the connection is closed
HEADERS = {
    "Cache-Control": "no-store",
    # The page may load nothing but what it is made of, and speaks to this server alone.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes, so that nobody exhausts its memory.

    Attributes:
      megabytes: of an uploaded file.
      megapixels: of the photo in it.
      uploads: how many are received or wait at a time; one is segmented at a time.
      seconds: after which a connection that sends nothing is closed.
    """

    megabytes: int = 40
    megapixels: int = 50
    uploads: int = 4
    seconds: float = 30


class Refusal(Exception):
    """A request that is answered with an error: its status, and the message shown on the page."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class DemoServer(ThreadingHTTPServer):
    """Serves the page, and answers POST /segment, whose body is a photo's file, with JSON.

    The answer holds `width`, `height`, `seconds`, `photo` (a JPEG, upright) and `labels` (a PNG whose red and green
    channels are the class id's low and high byte), both as data URLs, and `classes`: the id, name, colour and share of
    each class found, the largest first. Where something is wrong it holds `error`, a sentence, and the status tells.
    """

    daemon_threads = True

    def __init__(self, segmenter: Segmenter, host: str = "127.0.0.1", port: int = 0, limits: Limits | None = None):
        """Listen on `port`, a free one if it is 0; raises `OSError` where that is not possible."""
        self.segmenter = segmenter
        self.limits = limits or Limits()
        self.segmenting = threading.Lock()
        self.uploads = threading.BoundedSemaphore(self.limits.uploads)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.host = host
        self.local = host == "localhost" or _is_loopback(host)

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_port}"

    def answer(self, file: bytes) -> dict:
        """Segment an uploaded photo; raises `Refusal`."""
        with self.segmenting:
            image = _open_upload(file, self.limits)
            start = time.perf_counter()
            labels = self.segmenter(image).labels
            seconds = time.perf_counter() - start
        classes = self.segmenter.classes
        found = [
            {"id": i, "name": classes.names[i], "colour": classes.palette[i].tolist(), "share": share}
            for i, share in class_shares(labels, len(classes))
        ]
        encoded = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=-1).astype(np.uint8)
        return {
            "width": image.shape[1],
            "height": image.shape[0],
            "seconds": seconds,
            "classes": found,
            "photo": _data_url(image, "JPEG", quality=90),
            "labels": _data_url(encoded, "PNG", compress_level=1),
        }


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: DemoServer
    server_version = "fasseg_jax"
    sys_version = ""

    received = False  # the body, or as much of it as came

    def setup(self):
        self.timeout = self.server.limits.seconds
        super().setup()

    def do_GET(self):
        """The page, at / alone: no path of the request names a file."""
        try:
            self._check_host()
            if self.path != "/":
                raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing at this address; the page is at /.")
        except Refusal as refusal:
            self._send_json(refusal.status, {"error": str(refusal)})
            return
        page = PAGE.read_text("utf-8").replace('"MAX_MEGABYTES"', str(self.server.limits.megabytes))
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())

    def do_POST(self):
        """A photo to be segmented."""
        try:
            self._check_host()
            if self.path != "/segment":
                raise Refusal(HTTPStatus.NOT_FOUND, "There is nothing at this address; photos go to /segment.")
            if not self.server.uploads.acquire(blocking=False):
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many photos at a time; try again in a moment.")
            try:
                status, answer = HTTPStatus.OK, self.server.answer(self._receive())
            finally:
                self.server.uploads.release()
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        except TimeoutError:
            return
        except Exception as error:  # the page shows what went wrong, and the server goes on
            self.log_error("%s: %s", type(error).__name__, error)
            answer = {"error": f"The photo could not be segmented: {error}"}
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        self._send_json(status, answer)
        self._discard()

    def log_request(self, code="-", size="-"):
        """Only errors are logged."""

    def _check_host(self) -> None:
        """Other sites must not reach a local server through the visitor's browser (DNS rebinding, foreign forms)."""
        origin = self.headers.get("Origin")
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0].strip("[]") if host.rpartition(":")[2].isdecimal() else host.strip("[]")
        if self.server.local and name != "localhost" and not _is_loopback(name):
            raise Refusal(HTTPStatus.FORBIDDEN, f"This page is served at {self.server.url} alone.")
        if origin is not None and origin != f"http://{host}":
            raise Refusal(HTTPStatus.FORBIDDEN, "Requests from other sites are refused.")

    def _receive(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "The request does not state the size of the photo.")
        if int(length) > self.server.limits.megabytes << 20:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file has {int(length) / 2**20:.0f} MB; at most {self.server.limits.megabytes} MB are taken.",
            )
        self.received = True
        file = self.rfile.read(int(length))
        if len(file) < int(length):
            raise Refusal(HTTPStatus.BAD_REQUEST, "The upload broke off.")
        return file

    def _discard(self) -> None:
        """Read what a refused client still sends, within reason: it takes in the answer only afterwards."""
        length = self.headers.get("Content-Length", "")
        unread = min(int(length), MAX_DISCARDED) if length.isdecimal() and not self.received else 0
        try:
            while unread > 0 and (chunk := self.rfile.read(min(unread, 1 << 16))):
                unread -= len(chunk)
        except OSError:
            return

    def _send_json(self, status: HTTPStatus, answer: dict) -> None:
        self._send(status, "application/json", json.dumps(answer).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _open_upload(file: bytes, limits: Limits) -> np.ndarray:
    """The photo in an uploaded file, uint8 RGB; its size is looked at before anything is decompressed."""
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # a damaged file raises nearly anything
        known = ", ".join(FORMATS)
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"This is no photo that can be read ({known}).") from error
    if width * height > limits.megapixels * 10**6:
        message = f"The photo has {width} x {height} pixels; at most {limits.megapixels} million are taken."
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    try:
        return open_photo(io.BytesIO(file))
    except PhotoError as error:
        reason = str(error).partition(": ")[2]  # without the file, which has no name
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The photo is damaged: {reason}.") from error


def _data_url(image: np.ndarray, kind: str, **options) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
