"""What `fasseg serve` keeps of the network's bare speed, and what it does with too many and too slow clients.

    python benchmarks/serve.py --config configs/ade20k.py:r50

starts a server with random weights in this process, and sends JPEG photos of 683x512 pixels over HTTP. The bare network
computes the same photos, ready in memory, one after the other. The two take turns, so that a change of the machine's
speed affects both. Then come more clients than may wait, and clients that send a few bytes a second beside good ones.
The resident memory is that of this process, clients included.
"""

import concurrent.futures
import http.client
import io
import json
import socket
import statistics
import threading
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image

from fasseg_jax.data import data_classes
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.serving.limits import Limits
from fasseg_jax.serving.server import PhotoServer

CONFIG = config_flags.DEFINE_config_file("config", "configs/ade20k.py:r50", "Model and inference.")
SIZE = flags.DEFINE_list("size", ["512", "683"], "Height and width of the photos.")
PHOTOS = flags.DEFINE_integer("photos", 16, "Photos per round.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds of each kind.")
CLIENTS = flags.DEFINE_integer("clients", 4, "Clients at once.")
SLOW = flags.DEFINE_integer("slow", 16, "Slow clients beside the good ones.")
MORE = flags.DEFINE_integer("more", 0, "Requests of the test of memory.")
OUTPUT = flags.DEFINE_string("output", None, "File for the figures, JSON.")


def photo_files(count: int) -> list[bytes]:
    """Generated photos, as JPEG files."""
    height, width = map(int, SIZE.value)
    source = ShapesSource("validation", count, (height, width), load_classes("shapes"), ignore_label=255)
    files = []
    for index in range(count):
        file = io.BytesIO()
        Image.fromarray(source[index].image).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def post(port: int, file: bytes, form: str = "labels") -> tuple[int, str | None]:
    """Send a photo: the status and Retry-After."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    connection.request("POST", f"/segment?format={form}", file)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers["Retry-After"]


def resident_mb() -> float:
    """Memory of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def rate(port: int, files: list[bytes], clients: int) -> tuple[float, float]:
    """Photos per second of so many clients, and the median seconds of a request."""
    seconds = []

    def send(file: bytes) -> None:
        start = time.perf_counter()
        status, _ = post(port, file)
        assert status == 200, status
        seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, files))
    return len(files) / (time.perf_counter() - start), statistics.median(seconds)


def overload(port: int, files: list[bytes]) -> dict:
    """Four times as many clients as may wait, each with one photo."""
    with concurrent.futures.ThreadPoolExecutor(4 * Limits.waiting) as pool:
        answers = list(pool.map(lambda index: post(port, files[index % len(files)]), range(4 * Limits.waiting)))
    statuses = [status for status, _ in answers]
    assert set(statuses) <= {200, 503} and all(wait for status, wait in answers if status == 503)
    waits = sorted({int(wait) for _, wait in answers if wait})
    return {"answered": statuses.count(200), "refused": statuses.count(503), "retry_after": waits}


def slow_clients(port: int, count: int, stop: threading.Event) -> threading.Thread:
    """Clients that send a byte twice a second, and come back when the server has cut them off."""

    def open_upload() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        return connection

    def send() -> None:
        connections = [open_upload() for _ in range(count)]
        while not stop.wait(0.5):
            for index, connection in enumerate(connections):
                try:
                    connection.sendall(b"x")
                except OSError:
                    connections[index] = open_upload()
        for connection in connections:
            connection.close()

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def main(_):
    """Measure and report."""
    config = CONFIG.value
    variables = jax.jit(lambda: initial_variables(build_model(config.model), seed=0))()
    segmenter = Segmenter(config, variables, data_classes(config.data))
    files = photo_files(PHOTOS.value)
    images = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    segmenter(images[0])  # compiles
    results = {"bare": [], "one client": [], f"{CLIENTS.value} clients": [], f"beside {SLOW.value} slow clients": []}
    seconds = {name: [] for name in results}
    with PhotoServer(segmenter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port
        for _ in range(ROUNDS.value):
            start = time.perf_counter()
            for _labels in segmenter.segment_all(enumerate(images)):
                pass
            results["bare"].append(len(images) / (time.perf_counter() - start))
            for name, clients in (("one client", 1), (f"{CLIENTS.value} clients", CLIENTS.value)):
                found, median = rate(port, files, clients)
                results[name].append(found)
                seconds[name].append(median)
            stop = threading.Event()
            slow = slow_clients(port, SLOW.value, stop)
            found, median = rate(port, files, CLIENTS.value)
            stop.set()
            slow.join()
            results[f"beside {SLOW.value} slow clients"].append(found)
            seconds[f"beside {SLOW.value} slow clients"].append(median)
        bare = statistics.median(results["bare"])
        for name, rates in results.items():
            middle = statistics.median(rates)
            latency = f", {statistics.median(seconds[name]):.2f} s each" if seconds[name] else ""
            print(
                f"{name:24} {middle:6.3f} photos/s ({min(rates):.3f} to {max(rates):.3f}), {middle / bare:.2f}{latency}"
            )
        memory = [round(resident_mb())]
        for done in range(0, MORE.value, 100):
            rate(port, [files[index % len(files)] for index in range(min(100, MORE.value - done))], CLIENTS.value)
            memory.append(round(resident_mb()))
        print(f"memory after 0, 100, ... of {MORE.value} more requests: {memory} MB")
        flood = overload(port, files)
        print(f"{4 * Limits.waiting} clients at once: {flood}")
        server.shutdown()
    if OUTPUT.value:
        figures = {"photos_per_s": results, "median_s": seconds, "memory_mb": memory, "overload": flood}
        Path(OUTPUT.value).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    app.run(main)
