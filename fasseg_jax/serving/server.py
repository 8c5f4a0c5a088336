"""The server of the page, and of its interface."""

import contextlib
import io
import socket
import sys
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.files import Path
from fasseg_jax.serving.answers import FORMATS, Result, json_bytes
from fasseg_jax.serving.batcher import Batcher
from fasseg_jax.serving.http_requests import (
    DeadlineReader,
    Disconnected,
    Refusal,
    body_length,
    check_headers,
    check_origin,
    is_loopback,
    requested_format,
)
from fasseg_jax.serving.limits import Limits, PixelBudget, Slots
from fasseg_jax.serving.metrics import Metrics
from fasseg_jax.serving.openapi import openapi_document
from fasseg_jax.serving.uploads import open_upload, upload_pixels

__all__ = ["PhotoServer"]

PAGE = Path(__file__).with_name("page.html")
MAX_DISCARDED = 256 << 20  # bytes of a refused upload that the server reads before it closes the connection
LONGEST_RETRY = 60  # seconds
JSON = "application/json"
HEADERS = {
    "Cache-Control": "no-store",
    # The page may load nothing, and may connect only to this server.
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
REFUSED_CONNECTION = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"


class PhotoServer(ThreadingHTTPServer):
    """Serves the page; answers POST /segment, whose body is the file of a photo; see `openapi_document`.

    A thread for each connection reads, decodes and encodes; one more thread computes (`Batcher`).
    """

    daemon_threads = True
    request_queue_size = 128  # connections that the system accepts before this program does

    def __init__(self, segmenter: Segmenter, host: str = "127.0.0.1", port: int = 0, limits: Limits | None = None):
        """Listen for connections.

        Args:
          segmenter: the model; it must know its classes. Only this server uses it from now on.
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
        self.limits = limits or Limits()
        self.uploads = Slots(self.limits.uploads)
        self.waiting = Slots(self.limits.waiting)  # for photos until their answer is made
        self.connections = Slots(self.limits.connections)
        self.pixels = PixelBudget(2 * self.limits.megapixels * 10**6)
        self.metrics = Metrics(lambda: self.waiting.taken, lambda: len(segmenter.input_shapes))
        self.batcher = Batcher(segmenter, self.limits.batch_size, self.metrics.observe_batch)
        self.host = host
        self.local = host == "localhost" or is_loopback(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.server_port}"

    def process_request(self, request, client_address):
        """Answer a connection in a thread of its own, or refuse it: every thread takes memory and a descriptor."""
        if self.connections.take():
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread could start
                self.connections.give_back()
                raise
            return
        self.metrics.count_refused_connection()
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.sendall(REFUSED_CONNECTION)
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        """Answer a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.give_back()

    def handle_error(self, request, client_address):
        """Print what went wrong in one line; the server continues."""
        report(sys.exception())

    def server_close(self):
        """Stop listening, and computing."""
        super().server_close()
        self.batcher.close()

    def finish(self, seconds: float) -> None:
        """Listen no more, and wait until all connections have ended, at most so many seconds."""
        self.socket.close()
        end = time.monotonic() + seconds
        while self.connections.taken and time.monotonic() < end:
            time.sleep(0.05)

    @contextlib.contextmanager
    def slot(self, slots: Slots) -> Iterator[None]:
        """One of the slots for the block; raises a `Refusal` if all are taken."""
        if not slots.take():
            seconds = round(self.waiting.taken * self.batcher.seconds_per_photo)
            message = "Too many photos at once; try again in a moment."
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message, min(max(seconds, 1), LONGEST_RETRY))
        try:
            yield
        finally:
            slots.give_back()

    def answer(self, file: bytes, form: str) -> bytes:
        """Segment an uploaded photo, and answer in a format of `FORMATS`; raises `Refusal`."""
        start = time.perf_counter()
        with self.pixels.hold(upload_pixels(file, self.limits.megapixels)):
            image = open_upload(file)
            labels, seconds = self.batcher(image)
            body = FORMATS[form].body(Result(image, labels, self.classes, seconds))
        self.metrics.observe_photo(time.perf_counter() - start)
        return body

    def health(self) -> tuple[HTTPStatus, bytes]:
        """Whether photos are segmented."""
        ok = self.batcher.is_alive
        content = {"status": "ok" if ok else "stopped", "classes": len(self.classes), "waiting": self.waiting.taken}
        return HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, json_bytes(content)

    def document(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """What is at an address: status, type and content; raises a `Refusal` if there is nothing."""
        match path:
            case "/":
                page = PAGE.read_text("utf-8").replace('"MAX_MEGABYTES"', str(self.limits.megabytes))
                return HTTPStatus.OK, "text/html; charset=utf-8", page.encode()
            case "/health":
                status, body = self.health()
                return status, JSON, body
            case "/metrics":
                return HTTPStatus.OK, self.metrics.content_type, self.metrics.text()
            case "/openapi.json":
                return HTTPStatus.OK, JSON, json_bytes(openapi_document(self.limits))
        raise Refusal(HTTPStatus.NOT_FOUND, "Nothing is at this address; the page is at /.")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: PhotoServer
    server_version = "fasseg_jax"
    sys_version = ""

    consumed = False  # whether the whole request was read

    def setup(self):
        """Read from the connection up to a deadline."""
        super().setup()
        self.rfile.close()
        self.arriving = DeadlineReader(self.connection, self.server.limits.patience)
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
            self._refuse(refusal)
            return False
        return True

    def do_GET(self):
        """Send one of a few documents: no request can name a file."""
        self.consumed = "Content-Length" not in self.headers
        try:
            check_origin(self.headers, self.server.url, self.server.local)
            status, kind, body = self.server.document(self.path)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._send(status, kind, body, path=self.path)

    def do_POST(self):
        """Segment a photo."""
        try:
            check_origin(self.headers, self.server.url, self.server.local)
            form = requested_format(self.path, FORMATS)
            length = body_length(self.headers, self.server.limits.megabytes)
            with self.server.slot(self.server.uploads):
                file = self._receive(length)
            with self.server.slot(self.server.waiting):
                body = self.server.answer(file, form)
        except Refusal as refusal:
            self._refuse(refusal)
        except Disconnected:
            raise
        except Exception as error:  # the page shows the error, and the server continues
            report(error)
            self._refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"The photo could not be segmented: {error}"))
        else:
            self._send(HTTPStatus.OK, FORMATS[form].content_type, body, path="/segment")

    def send_error(self, code, message=None, explain=None):
        """Refuse what the standard library cannot read, as all refusals: in JSON."""
        self.request_version = self.protocol_version  # what the client named may be no version
        self._refuse(Refusal(HTTPStatus(code), f"{message or HTTPStatus(code).phrase}."))

    def log_message(self, format, *args):
        """Log nothing that a client sends or does: anyone could fill the terminal."""

    def _receive(self, length: int) -> bytes:
        limits = self.server.limits
        self.arriving.restart(limits.seconds, limits.patience, limits.bytes_per_second)
        try:
            file = self.rfile.read(length)
        except TimeoutError as error:
            message = f"The photo did not arrive within {limits.seconds:g} s."
            if self.arriving.is_slow:
                message = f"The photo arrived at less than {limits.bytes_per_second} bytes per second."
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
        limits = self.server.limits
        unread = 0 if self.consumed else MAX_DISCARDED
        self.arriving.restart(limits.seconds, limits.patience, limits.bytes_per_second)
        with contextlib.suppress(OSError):  # also at the deadline
            self.connection.shutdown(socket.SHUT_WR)
            while unread > 0 and (chunk := self.rfile.read1(1 << 16)):
                unread -= len(chunk)

    def _refuse(self, refusal: Refusal) -> None:
        headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
        path = "/segment" if self.command == "POST" and self.path.partition("?")[0] == "/segment" else "other"
        self._send(refusal.status, JSON, json_bytes({"error": str(refusal)}), path, headers)

    def _send(
        self, status: HTTPStatus, kind: str, body: bytes, path: str, headers: dict[str, str] | None = None
    ) -> None:
        self.server.metrics.count_answer(path, status)
        self.connection.settimeout(self.server.limits.seconds)
        self.send_response(status)
        fields = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        try:
            self.end_headers()
            self.wfile.write(body)
        except OSError as error:
            raise Disconnected from error


def report(error: BaseException | None) -> None:
    """Print an error in one line."""
    print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
