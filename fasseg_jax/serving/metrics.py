"""What the server counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["Metrics"]

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
PHOTOS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; threads may use them at once.

    Attributes:
      content_type: of the text.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], int], programs: Callable[[], int]):
        """Begin to count.

        Args:
          waiting: the number of photos that wait for the network or for their answer.
          programs: the number of input shapes that the network was compiled for.
        """
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "fasseg_requests", "Answers, by address and status.", ["path", "status"], registry=None
        )
        self._refused = Counter(
            "fasseg_refused_connections", "Connections refused because there were too many.", registry=None
        )
        self._answers = Histogram(
            "fasseg_answer_seconds",
            "From the arrival of a photo until its answer was made.",
            buckets=SECONDS,
            registry=None,
        )
        self._batches = Histogram("fasseg_batch_photos", "Photos in a batch.", buckets=PHOTOS, registry=None)
        self._network = Histogram(
            "fasseg_batch_seconds",
            "Time of a batch on the device, compilation included.",
            buckets=SECONDS,
            registry=None,
        )
        photos = Gauge("fasseg_waiting_photos", "Photos that wait or are computed.", registry=None)
        shapes = Gauge("fasseg_network_shapes", "Input shapes that the network was compiled for.", registry=None)
        photos.set_function(waiting)
        shapes.set_function(programs)
        for metric in (self._requests, self._refused, self._answers, self._batches, self._network, photos, shapes):
            registry.register(metric)
        ProcessCollector(registry=registry)

    def count_answer(self, path: str, status: int) -> None:
        """Count an answer; `path` must be one of a few."""
        self._requests.labels(path, str(status)).inc()

    def count_refused_connection(self) -> None:
        """Count a connection that was refused."""
        self._refused.inc()

    def observe_photo(self, seconds: float) -> None:
        """Count a photo, and the time until its answer was made."""
        self._answers.observe(seconds)

    def observe_batch(self, photos: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.observe(photos)
        self._network.observe(seconds)

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return generate_latest(self._registry)
