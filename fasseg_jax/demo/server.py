"""The server of the web page for trying a model."""

import base64
import contextlib
import dataclasses
import io
import ipaddress
import json
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from fasseg_jax.demo.http_requests import DeadlineReader, Disconnected, Refusal, body_length, check_headers
from fasseg_jax.demo.uploads import open_upload
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.files import Path
from fasseg_jax.visualization.legend import class_shares

__all__ = ["DemoServer", "Limits"]

PAGE = Path(__file__).with_name("demo.html")
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
      connections: the number of connections at once.
      seconds: the time for the headers of a request, for the whole upload after them, and for sending the answer.
    """

    megabytes: int = 40
    megapixels: int = 50
    uploads: int = 4
    connections: int = 128
    seconds: float = 60


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
        self.connections = threading.BoundedSemaphore(self.limits.connections)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.host = host
        self.local = host == "localhost" or _is_loopback(host)

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_port}"

    def process_request(self, request, client_address):
        """Answer a connection in a thread of its own, or refuse it: every thread takes memory and a descriptor."""
        if self.connections.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could start
                self.connections.release()
                raise
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request, client_address):
        """Print what went wrong in one line; the server continues."""
        report(sys.exception())

    def answer(self, file: bytes) -> dict:
        """Segment an uploaded photo; raises `Refusal`."""
        with self.segmenting:
            image = open_upload(file, self.limits.megapixels)
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

    consumed = False  # whether the whole request was read

    def setup(self):
        """Read from the connection up to a deadline."""
        super().setup()
        self.rfile.close()
        self.arriving = DeadlineReader(self.connection, self.server.limits.seconds)
        self.rfile = io.BufferedReader(self.arriving)

    def handle(self):
        """Answer the request, unless the client goes."""
        with contextlib.suppress(Disconnected):
            super().handle()
            self._discard()

    def parse_request(self) -> bool:
        """Read the headers; sends a refusal and returns False if they are malformed."""
        if not super().parse_request():
            return False
        try:
            if self.request_version == "HTTP/0.9":
                self.request_version = self.protocol_version
                raise Refusal(HTTPStatus.BAD_REQUEST, "The request's first line does not end with a version of HTTP.")
            check_headers(self.headers)
        except Refusal as refusal:
            self._send_json(refusal.status, {"error": str(refusal)})
            return False
        return True

    def do_GET(self):
        """Send the page, the only thing to get: no request can name a file."""
        self.consumed = "Content-Length" not in self.headers
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
            length = body_length(self.headers, self.server.limits.megabytes)
            if not self.server.uploads.acquire(blocking=False):
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "Too many photos at once; try again in a moment.")
            try:
                status, answer = HTTPStatus.OK, self.server.answer(self._receive(length))
            finally:
                self.server.uploads.release()
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
        except Disconnected:
            raise
        except Exception as error:  # the page shows the error, and the server continues
            report(error)
            answer = {"error": f"The photo could not be segmented: {error}"}
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        self._send_json(status, answer)

    def send_error(self, code, message=None, explain=None):
        """Refuse what the standard library cannot read, as all refusals: in JSON."""
        self.request_version = self.protocol_version  # what the client named may be no version
        self._send_json(HTTPStatus(code), {"error": f"{message or HTTPStatus(code).phrase}."})

    def log_message(self, format, *args):
        """Log nothing that a client sends or does: anyone could fill the terminal."""

    def _check_host(self) -> None:
        """Stop other sites from using a local server through the visitor's browser (DNS rebinding, foreign forms)."""
        origin = self.headers.get("Origin")
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0].strip("[]") if host.rpartition(":")[2].isdecimal() else host.strip("[]")
        if self.server.local and name != "localhost" and not _is_loopback(name):
            raise Refusal(HTTPStatus.FORBIDDEN, f"The only address of this page is {self.server.url}.")
        if origin is not None and origin != f"http://{host}":
            raise Refusal(HTTPStatus.FORBIDDEN, "This server refuses requests from other sites.")

    def _receive(self, length: int) -> bytes:
        self.arriving.restart(self.server.limits.seconds)
        try:
            file = self.rfile.read(length)
        except TimeoutError as error:
            message = f"The photo did not arrive within {self.server.limits.seconds:g} s."
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, message) from error
        if len(file) < length:
            raise Refusal(HTTPStatus.BAD_REQUEST, "The upload was interrupted.")
        self.consumed = True
        return file

    def _discard(self) -> None:
        """Read the rest of a refused request, up to limits of bytes and time.

        A browser reads the answer only when it has sent all, and a connection that is closed with bytes unread loses
        the answer.
        """
        unread = 0 if self.consumed else MAX_DISCARDED
        self.arriving.restart(self.server.limits.seconds)
        with contextlib.suppress(OSError):  # also at the deadline
            self.connection.shutdown(socket.SHUT_WR)
            while unread > 0 and (chunk := self.rfile.read1(1 << 16)):
                unread -= len(chunk)

    def _send_json(self, status: HTTPStatus, answer: dict) -> None:
        self._send(status, "application/json", json.dumps(answer).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(self.server.limits.seconds)
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}.items():
            self.send_header(name, value)
        try:
            self.end_headers()
            self.wfile.write(body)
        except OSError as error:
            raise Disconnected from error


def report(error: BaseException | None) -> None:
    """Print an error in one line."""
    print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def _data_url(image: np.ndarray, kind: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
