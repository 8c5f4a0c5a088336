"""Checks of HTTP requests, and a reader of connections that keeps to a deadline."""

import io
import ipaddress
import math
import re
import socket
import time
from collections.abc import Collection
from email import errors
from email.message import Message
from http import HTTPStatus

__all__ = [
    "DeadlineReader",
    "Disconnected",
    "Refusal",
    "body_length",
    "check_headers",
    "check_origin",
    "is_loopback",
    "requested_format",
]

SINGLE = ("Content-Length", "Host", "Origin")  # two of these could be read in two ways
MALFORMED = (
    errors.FirstHeaderLineIsContinuationDefect,
    errors.InvalidHeaderDefect,
    errors.MissingHeaderBodySeparatorDefect,
)


class Refusal(Exception):
    """The answer to a bad request, or to one too many.

    Attributes:
      status: of HTTP.
      retry_after: seconds after which the client may try again, or None.
    """

    def __init__(self, status: HTTPStatus, message: str, retry_after: int | None = None):
        """Refuse with a message that the page shows."""
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Disconnected(Exception):
    """The client has gone."""


class DeadlineReader(io.RawIOBase):
    """The bytes of a connection, up to a deadline, and only while they come fast enough.

    A limit for each read alone would let a client that sends a byte now and then go on for ever.
    """

    def __init__(self, connection: socket.socket, seconds: float):
        """Read from `connection`, for at most `seconds` from now."""
        self._connection = connection
        self.restart(seconds)

    def restart(self, seconds: float, patience: float = 0, bytes_per_second: int = 0) -> None:
        """Set the deadline to `seconds` from now.

        Args:
          seconds: from now.
          patience: seconds from now after which the average speed counts.
          bytes_per_second: the lowest average speed; 0: any.
        """
        now = time.monotonic()
        self._deadline = now + seconds
        self._fast_until = now + patience if bytes_per_second else math.inf
        self._seconds_per_byte = 1 / bytes_per_second if bytes_per_second else 0

    @property
    def is_slow(self) -> bool:
        """Whether the bytes came too slowly, although the deadline has not passed."""
        return self._fast_until < self._deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Read what there is.

        Raises:
          TimeoutError: the deadline has passed, or the bytes come too slowly.
          Disconnected: the client has gone.
        """
        remaining = min(self._deadline, self._fast_until) - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)
        try:
            received = self._connection.recv_into(buffer)
            self._fast_until += received * self._seconds_per_byte
            return received
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected from error


def check_headers(headers: Message) -> None:
    """Raise a `Refusal` of headers that another program could read otherwise."""
    if any(isinstance(defect, MALFORMED) for defect in headers.defects):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The request has a header line without a name and a colon.")
    for name in SINGLE:
        if len(headers.get_all(name, [])) > 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"The request has more than one header {name}.")
    if "Transfer-Encoding" in headers:
        message = "The server reads no Transfer-Encoding; state the size of the photo in Content-Length."
        raise Refusal(HTTPStatus.BAD_REQUEST, message)


def body_length(headers: Message, megabytes: int) -> int:
    """The size of the body in bytes; raises a `Refusal` if it is not stated, is no number, or is over `megabytes`."""
    length = headers.get("Content-Length")
    if length is None:
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "The request does not state the size of the photo.")
    if not re.fullmatch("[0-9]+", length):
        raise Refusal(HTTPStatus.BAD_REQUEST, "The header Content-Length must be a whole number of bytes.")
    digits = length.lstrip("0") or "0"
    if len(digits) > 15 or int(digits) > megabytes << 20:  # Python refuses to read a number of thousands of digits
        size = f"{int(digits) / 2**20:.0f} MB" if len(digits) <= 15 else "more than a billion MB"
        message = f"The file has {size}; the limit is {megabytes} MB."
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    return int(digits)


def requested_format(path: str, formats: Collection[str]) -> str:
    """The answer's format that the address of a photo asks for; the first of `formats` if it names none.

    Raises:
      Refusal: the address is not /segment, or asks for something else.
    """
    address, _, query = path.partition("?")
    if address != "/segment":
        raise Refusal(HTTPStatus.NOT_FOUND, "Nothing is at this address; send photos to /segment.")
    name = query.removeprefix("format=") if query else next(iter(formats))
    if name == query or name not in formats:
        message = f"Ask for /segment?format=NAME, where NAME is one of {', '.join(formats)}."
        raise Refusal(HTTPStatus.BAD_REQUEST, message)
    return name


def check_origin(headers: Message, url: str, local: bool) -> None:
    """Stop other sites from using a server through the visitor's browser (DNS rebinding, foreign forms).

    Args:
      headers: of the request.
      url: of the server, for the message.
      local: whether the server serves only this machine.

    Raises:
      Refusal: the request names another host, or comes from another site.
    """
    origin = headers.get("Origin")
    host = headers.get("Host", "")
    name = host.rpartition(":")[0].strip("[]") if host.rpartition(":")[2].isdecimal() else host.strip("[]")
    if local and name != "localhost" and not is_loopback(name):
        raise Refusal(HTTPStatus.FORBIDDEN, f"The only address of this page is {url}.")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Refusal(HTTPStatus.FORBIDDEN, "This server refuses requests from other sites.")


def is_loopback(host: str) -> bool:
    """Whether a host is an address of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
