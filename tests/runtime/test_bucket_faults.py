"""Buckets that are absent, refuse, or do not answer: one line says so."""

import json
import os
import socket
import subprocess
import sys

import pytest

from fasseg_jax.runtime.files import WriteError, list_files, make_path, write_atomically
from fasseg_jax.runtime.record_file import RecordFile
from tests.helpers import ROOT


def test_a_bucket_that_is_absent(emulator):
    path = make_path("gs://absent-bucket/run/file")
    assert not path.exists() and not path.is_dir()
    with pytest.raises(FileNotFoundError, match="there is no bucket absent-bucket"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with (
        pytest.raises(WriteError, match=f"cannot write {path}: there is no such bucket"),
        write_atomically(path) as file,
    ):
        file.write_text("x")
    with pytest.raises(WriteError, match="there is no bucket absent-bucket; correct the name"):
        RecordFile(path)


@pytest.mark.parametrize(
    ("status", "message", "words"),
    [
        (
            403,
            "x@y does not have storage.objects.create access",
            "access is refused .*storage.objects.create.* ask for",
        ),
        (401, "Anonymous caller does not have access", "access is refused .*Anonymous.* log in with `gcloud auth"),
        (400, "This name is not allowed", "the storage refuses .*This name is not allowed"),
    ],
)
def test_refusals_are_one_line(emulator, bucket_folder, monkeypatch, status, message, words):
    """The emulator has no permissions; its answers are replaced."""
    from gcsfs import core

    def refuse(_, content, path, args=None):
        return validate(status, json.dumps({"error": {"code": status, "message": message}}), path, args)

    validate = core.validate_response
    monkeypatch.setattr(core, "validate_response", refuse)
    path = make_path(bucket_folder) / "file"
    for attempt in (path.exists, path.is_dir, path.read_bytes, lambda: list_files(path), path.unlink, path.mkdir):
        with pytest.raises(OSError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value)
    with pytest.raises(WriteError, match=f"cannot write {path}: {words}") as error, write_atomically(path) as file:
        file.write_text("x")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_server_that_is_gone_ends_in_bounded_time():
    """Measured in the process, without its start."""
    program = (
        "import time\n"
        "from fasseg_jax.runtime.files import make_path, write_atomically\n"
        "path = make_path('gs://tests/file')\n"
        "begin = time.monotonic()\n"
        "try:\n"
        "    with write_atomically(path) as file: file.write_text('x')\n"
        "except OSError as error: print(time.monotonic() - begin, error)"
    )
    with socket.socket() as closed:  # bound, but it accepts nothing
        closed.bind(("127.0.0.1", 0))
        environment = {**os.environ, "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    seconds, _, message = run.stdout.strip().partition(" ")
    assert float(seconds) < 60 and "\n" not in message and not run.stderr
    assert message.startswith("cannot write gs://tests/file: the storage does not answer"), run.stdout
