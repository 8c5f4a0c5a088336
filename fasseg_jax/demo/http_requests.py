"""Checks of HTTP requests, and a reader of connections that keeps to a deadline."""

import io
import re
import socket
import time
from email import errors
from email.message import Message
from http import HTTPStatus

__all__ = ["DeadlineReader", "Disconnected", "Refusal", "body_length", "check_headers"]

SINGLE = ("Content-Length", "Host", "Origin")  # two of these could be read in two ways
MALFORMED = (
    errors.FirstHeaderLineIsContinuationDefect,
    errors.InvalidHeaderDefect,
    errors.MissingHeaderBodySeparatorDefect,
)


class Refusal(Exception):
    """The answer to a bad request: an HTTP status, and a message that the page shows."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Disconnected(Exception):
    """The client has gone."""


class DeadlineReader(io.RawIOBase):
    """The bytes of a connection, up to a deadline.

    A limit for each read alone would let a client that sends a byte now and then go on for ever.
    """

    def __init__(self, connection: socket.socket, seconds: float):
        """Read from `connection`, for at most `seconds` from now."""
        self._connection = connection
        self.restart(seconds)

    def restart(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Read what there is.

        Raises:
          TimeoutError: the deadline has passed.
          Disconnected: the client has gone.
        """
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)
        try:
            return self._connection.recv_into(buffer)
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
