"""A lost host is one line and status 75: what JAX writes when it aborts, and a program whose child ends in odd ways."""

import os
import signal
import subprocess
import sys
import time

import pytest

from fasseg_jax.runtime.supervision import explain_abort
from tests.helpers import ROOT

FACTS = {"host": 0, "hosts": 3, "seconds": 60, "start_seconds": 300}
FATAL = (
    "F1126 14:00:42.526708   13790 client.h:80] Terminating process because the JAX distributed service detected fatal "
    "errors. This most likely indicates that another task died; see the other task logs. absl::Status: "
)
SILENT = "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n{}\nThe tasks have crashed. "
LEADER = "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/died/restarted "
UNREGISTERED = "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (SILENT.format("1"), "host 1 of 3 is lost: no sign of life for 60 s"),
        (SILENT.format("2\n1"), "hosts 1, 2 of 3 are lost: no sign of life for 60 s"),
        (SILENT.format("/job:jax_worker/replica:0/task:2"), "host 2 of 3 is lost: no sign of life for 60 s"),
        (SILENT.format("0\n1"), "host 0 of 3, this one, was given up: it gave no sign of life for 60 s"),
        (LEADER, "host 0 of 3 is lost: its program has ended, or the network to it"),
        (UNREGISTERED, "not all hosts have started within 300 s"),
        ("INTERNAL: of a later version", "a host of 3 is lost"),
    ],
)
def test_the_texts_of_jax(status, expected):
    assert explain_abort(FATAL + status, FACTS) == expected
    assert explain_abort("F1126 14:00:42.526708 1 gpu.cc:80] Check failed\n", FACTS) is None


# A program with several hosts, whose child does what the command line says.
PROGRAM = """
import os, signal, sys, time
from fasseg_jax.runtime.supervision import supervise, tell_supervisor
sys.argv[0] = "train.py"
supervise()
print("started", os.getpid(), flush=True)
exec(sys.argv[1])
"""
ABORT = f"""
tell_supervisor(host=0, hosts=3, seconds=60)
print("ours", file=sys.stderr)
os.write(2, b"I1126 14:00:42.5 13790 compiler.cc:1] theirs\\n")
os.write(2, {(FATAL + SILENT.format("1")).encode()!r} + b"\\nmore\\n")
os.abort()
"""
SEGFAULT = 'os.write(2, b"Fatal Python error: Aborted\\n"); os.kill(os.getpid(), signal.SIGSEGV)'


def start(code: str) -> subprocess.Popen:
    hosts = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, code], cwd=ROOT, env={**os.environ, **hosts}, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "status", "errors"),
    [
        (ABORT, 75, ["ours", "I1126 14:00:42.5 13790 compiler.cc:1] theirs", "train.py: host 1 of 3 is lost: no sign"]),
        # An abort that fails while it writes the stacks of the threads.
        (ABORT.replace("os.abort()", SEGFAULT), 75, ["ours", "I1126", "train.py: host 1 of 3 is lost: no sign"]),
        ("os.write(2, b'E1126 14:00:42.5 1 coordination_service.cc:9] x\\n'); sys.exit(2)", 2, []),
        ("os.write(2, b'E1126 14:00:42.5 1 slow_operation_alarm.cc:73] \\n***\\nfile a bug\\n')", 0, []),
        (
            "os.write(2, b'F1126 14:00:42.5 1 gpu.cc:9] x\\n'); os.abort()",
            134,
            ["F1126", "train.py: SIGABRT has ended"],
        ),
        ("os.kill(os.getpid(), 9)", 137, ["train.py: SIGKILL has ended the program; the kernel does that if memory"]),
    ],
)
def test_what_the_parent_says(code, status, errors):
    process = start(code)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status, printed
    lines = sorted(printed.splitlines())
    assert len(lines) == len(errors) and all(map(str.startswith, lines, sorted(errors))), printed


@pytest.mark.slow
def test_signals_reach_the_child_and_it_ends_with_its_parent():
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(75)); print('ready', flush=True); time.sleep(99)"
    )
    assert [process.stdout.readline().split()[0] for _ in range(2)] == ["started", "ready"]
    process.terminate()
    assert process.wait(timeout=60) == 75
    process = start("time.sleep(99)")
    child = int(process.stdout.readline().split()[1])
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{child}/exe") and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(OSError):
        os.readlink(f"/proc/{child}/exe")  # a zombie has none
