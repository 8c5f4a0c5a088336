"""The server of the web page for trying a model."""

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
# The only formats of uploads: Pillow starts programs for others (EPS), or hardly anyone uses and tests them.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_DISCARDED = 256 << 20  # bytes of a refused upload that the server reads before it closes the connection
HEADERS = {
    "Cache-Control": "no-store",
    # The page may load nothing, and may connect only to this server.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server accepts, so that nobody can exhaust its memory.

    Attributes:
      megabytes: largest size of an uploaded file.
      megapixels: largest size of the photo in it.
      uploads: the number of photos that the server receives or holds at once; it segments one at a time.
      seconds: the server closes a connection that sends nothing for so long.
    """

    megabytes: int = 40
    megapixels: int = 50
    uploads: int = 4
    seconds: float = 30


class Refusal(Exception):
    """The answer to a bad request: an HTTP status, and a message that the page shows."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class DemoServer(ThreadingHTTPServer):
    """Serves the page; answers POST /segment, whose body is the file of a photo, with JSON.

    The answer holds `width`, `height` and `seconds`; `photo`, a JPEG with the EXIF orientation applied, and `labels`, a
    PNG with the low byte of the class id in red and the high byte in green, both as data URLs; and `classes`, the id,
    name, color and share of each class in the photo, largest first. To a bad request it only holds `error`, a sentence.
    """

    daemon_threads = True

    def __init__(self, segmenter: Segmenter, host: str = "127.0.0.1", port: int = 0, limits: Limits | None = None):
        """Listen for connections.

        Args:
          segmenter: the model; it must know its classes.
          host: the address to listen on.
          port: 0 takes a free one.
          limits: by default those of `Limits()`.

        Raises:
          OSError: the server cannot listen on this address and port.
          ValueError: the segmenter has no classes.
        """
        if segmenter.classes is None:
            raise ValueError("the page names classes: give the Segmenter its class table")
        self.classes = segmenter.classes
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
        names, palette = self.classes.names, self.classes.palette
        found = [
            {"id": i, "name": names[i], "color": palette[i].tolist(), "share": share}
            for i, share in class_shares(labels, len(names))
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

    received = False  # whether the body was read

    def setup(self):
        self.timeout = self.server.limits.seconds
        super().setup()

    def do_GET(self):
        """Send the page, the only thing to get: no request can name a file."""
        try:
            self._check_host()
            if self.path != "/":
                raise Refusal(HTTPStatus.NOT_FOUND, "Nothing is at this address; the page is at /.")
        except Refusal as refusal:
            self._send_json(refusal.status, {"error": str(refusal)})
            return
        page = PAGE.read_text("utf-8").replace('"MAX_MEGABYTES"', str(self.server.limits.megabytes))
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())

    def do_POST(self):
        """Segment a photo."""
        try:
            self._check_host()
            if self.path != "/segment":
                raise Refusal(HTTPStatus.NOT_FOUND, "Nothing is at this address; send photos to /segment.")
            if not self.server.uploads.acquire(blocking=False):
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many photos at once; try again in a moment.")
            try:
                status, answer = HTTPStatus.OK, self.server.answer(self._receive())
            finally:
                self.server.uploads.release()
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        except TimeoutError:
            return
        except Exception as error:  # the page shows the error, and the server continues
            self.log_error("%s: %s", type(error).__name__, error)
            answer = {"error": f"The photo could not be segmented: {error}"}
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        self._send_json(status, answer)
        self._discard()

    def log_request(self, code="-", size="-"):
        """Log nothing: only errors are logged."""

    def _check_host(self) -> None:
        """Stop other sites from using a local server through the visitor's browser (DNS rebinding, foreign forms)."""
        origin = self.headers.get("Origin")
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0].strip("[]") if host.rpartition(":")[2].isdecimal() else host.strip("[]")
        if self.server.local and name != "localhost" and not _is_loopback(name):
            raise Refusal(HTTPStatus.FORBIDDEN, f"The only address of this page is {self.server.url}.")
        if origin is not None and origin != f"http://{host}":
            raise Refusal(HTTPStatus.FORBIDDEN, "This server refuses requests from other sites.")

    def _receive(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "The request does not state the size of the photo.")
        if int(length) > self.server.limits.megabytes << 20:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file has {int(length) / 2**20:.0f} MB; the limit is {self.server.limits.megabytes} MB.",
            )
        self.received = True
        file = self.rfile.read(int(length))
        if len(file) < int(length):
            raise Refusal(HTTPStatus.BAD_REQUEST, "The upload was interrupted.")
        return file

    def _discard(self) -> None:
        """Read the rest of a refused upload, up to a limit: a browser reads the answer only when it has sent all."""
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
    """The photo in an uploaded file, uint8 RGB. The size is checked before anything is decompressed."""
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # a damaged file can raise anything
        known = ", ".join(FORMATS)
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The file is not a photo in a known format ({known})."
        ) from error
    if width * height > limits.megapixels * 10**6:
        message = f"The photo has {width} x {height} pixels; the limit is {limits.megapixels} million."
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    try:
        return open_photo(io.BytesIO(file))
    except PhotoError as error:
        reason = str(error).partition(": ")[2]  # without the name of the file, which has none
        raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"The photo is damaged: {reason}.") from error


def _data_url(image: np.ndarray, kind: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
