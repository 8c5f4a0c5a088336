"""The lock of a folder belongs to one process, and ends with it however that ends."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fasseg_jax.runtime import bucket_lock
from fasseg_jax.runtime.files import make_path
from fasseg_jax.runtime.folder_lock import lock_folder
from tests.helpers import ROOT

HOLD = """
import sys, time
from pathlib import Path
from fasseg_jax.runtime.folder_lock import lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


def test_one_process_at_a_time(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"{tmp_path}: process {holder.pid} on \S+, started .* name another"):
            lock_folder(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    with lock_folder(tmp_path), pytest.raises(ValueError, match="trains in this folder"):
        lock_folder(tmp_path)
    with lock_folder(tmp_path), pytest.raises(ValueError, match="imports into this folder; stop it first"):
        lock_folder(tmp_path, what="imports into")
    lock_folder(tmp_path).close()


def test_hosts_have_locks_of_their_own(tmp_path):
    with lock_folder(tmp_path, ".host_0.lock"), lock_folder(tmp_path, ".host_1.lock"):
        pass


HOLD_IN_BUCKET = HOLD.replace("from pathlib import Path\n", "from fasseg_jax.runtime.files import make_path as Path\n")


@pytest.mark.slow
def test_one_process_at_a_time_in_a_bucket(bucket_folder, monkeypatch, capsys):
    monkeypatch.setattr(bucket_lock, "STALE", 30.0)
    folder = make_path(bucket_folder)
    program = HOLD_IN_BUCKET.replace("\nlock =", "\nimport fasseg_jax.runtime.bucket_lock as l; l.BEAT = 0.5\nlock =")
    holder = subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=rf"{folder}: process {holder.pid} on \S+, started .* name another"):
        lock_folder(folder)
    assert "waiting up to 30 s for a sign of life of process" in capsys.readouterr().err
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    lock = lock_folder(folder)  # at once, because its holder was on this machine
    assert time.monotonic() - begin < 5 and "waiting" not in capsys.readouterr().err
    lock.close()
    assert not (folder / ".lock").exists()
    with lock_folder(folder, ".host_0.lock"), lock_folder(folder, ".host_1.lock"):
        pass


@pytest.mark.slow
def test_a_holder_on_another_machine_that_died(bucket_folder, monkeypatch, capsys):
    """Its object stays as it is; after a time it is taken over, and whoever comes next is refused."""
    monkeypatch.setattr(bucket_lock, "STALE", 2.0)
    monkeypatch.setattr(bucket_lock, "BEAT", 0.2)
    folder = make_path(bucket_folder)
    for content in (b'{"holder": "process 7 on other,", "process": 7, "machine": ["other"]}', b"\xff damaged"):
        (folder / ".lock").write_bytes(content)
        begin = time.monotonic()
        with lock_folder(folder):
            assert 2 <= time.monotonic() - begin < 5
            with pytest.raises(ValueError, match=f"process {os.getpid()} on .* trains in this folder"):
                lock_folder(folder)
        words = capsys.readouterr().err.splitlines()[0]
        assert ("process 7 on other, which" if content.startswith(b"{") else "another process") in words


@pytest.mark.slow
def test_a_lock_that_another_process_took_over_ends_this_one(bucket_folder):
    folder = make_path(bucket_folder)
    program = HOLD_IN_BUCKET.replace("\nlock =", "\nimport fasseg_jax.runtime.bucket_lock as l; l.BEAT = 1.5\nlock =")
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    (folder / ".lock").write_bytes(b"another's")
    assert holder.wait(timeout=20) == 1
    message = holder.stderr.read()
    assert f"{folder}: another process has taken over this folder" in message and message.count("\n") == 1
    assert (folder / ".lock").read_bytes() == b"another's"


@pytest.mark.slow
def test_of_many_one_gets_the_lock(bucket_folder, monkeypatch):
    monkeypatch.setattr(bucket_lock, "BEAT", 0.2)
    folder = make_path(bucket_folder)

    def lock(_: int):
        try:
            return lock_folder(folder)
        except ValueError:
            return None

    with ThreadPoolExecutor(8) as pool:
        locks = [lock for lock in pool.map(lock, range(8)) if lock]
    assert len(locks) == 1
    locks[0].close()
