"""The watchdog ends a program that hangs, and leaves one alone that works, or that was only stopped."""

import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, time
from fasseg_jax.runtime.watchdog import Watchdog
sys.argv[0] = "train.py"
def hang():
    print("hangs", flush=True)
    time.sleep(99)
with Watchdog(1 / 60, "step", status=75) as watchdog:
    for _ in range(6):
        time.sleep(0.4)
        watchdog.progress()
    exec(sys.argv[1])
print("done", flush=True)
time.sleep(2)
"""


def start(code: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, code], cwd=ROOT, **pipes)


def test_a_program_that_hangs():
    process = start("hang()")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "hangs\n")
    assert "in hang\n" in errors and "in _watch\n" in errors  # the stacks of both threads
    last = errors.splitlines()[-1]
    assert last.startswith("train.py: for 0.0166667 minutes there was no step") and errors.count("train.py: ") == 1


def test_a_program_that_holds_pythons_lock():
    process = start("import ctypes; ctypes.PyDLL(None).sleep(60)")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.startswith("Timeout (0:00:02)!")


def test_a_program_that_was_stopped():
    process = start("print('works', flush=True); time.sleep(0.3)")
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "done\n", "")
