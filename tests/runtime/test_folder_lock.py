"""The lock of a folder belongs to one process, and ends with it however that ends."""

import subprocess
import sys

import pytest

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
