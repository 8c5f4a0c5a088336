"""What the server accepts, so that nobody can exhaust its memory."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

__all__ = ["Limits", "PixelBudget", "Slots"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server accepts.

    Attributes:
      megabytes: largest size of an uploaded file.
      megapixels: largest size of the photo in it. All decoded photos together have at most twice as many.
      batch_size: the number of photos that a device computes together, if that saves time there.
      waiting: the number of photos that wait for the network, or for their answer, at once.
      uploads: the number of photos that arrive at once.
      connections: the number of connections at once.
      seconds: the time for an upload, and for sending the answer.
      patience: the time in seconds for the headers of a request, and after which an upload must be fast enough.
      bytes_per_second: the lowest average speed of an upload after that.
    """

    megabytes: int = 40
    megapixels: int = 50
    batch_size: int = 8
    waiting: int = 16
    uploads: int = 32
    connections: int = 128
    seconds: float = 60
    patience: float = 10
    bytes_per_second: int = 10_000


class Slots:
    """A number of slots, which threads take and give back.

    Attributes:
      number: of all slots.
      taken: how many are taken now.
    """

    def __init__(self, number: int):
        """Begin with all slots free."""
        self.number, self.taken = number, 0
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take a slot; False if there is none."""
        with self._lock:
            is_free = self.taken < self.number
            self.taken += is_free
            return is_free

    def give_back(self) -> None:
        """Give a slot back."""
        with self._lock:
            self.taken -= 1


class PixelBudget:
    """The pixels of decoded photos that may be in memory at once. Threads get their share in turn."""

    def __init__(self, pixels: int):
        """`pixels` at once; nobody may ask for more."""
        self._free = pixels
        self._turn = threading.Lock()  # held by the thread that waits, so that small photos do not overtake a large one
        self._returned = threading.Condition()

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels are free, and hold them in the block."""
        with self._turn, self._returned:
            self._returned.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._returned:
                self._free += pixels
                self._returned.notify_all()
