"""A program that runs on several hosts runs in a process of its own, so that a lost host is one line and status 75.

JAX's coordination service knows which hosts are alive: each sends signs of life to host 0. If one stops, the service
ends the program on all hosts: not by an exception, but by an abort in a thread of C++, after tens of lines of text. If
host 0 is lost, that happens in a moment. Nothing within the process can prevent it, and a heartbeat of our own would
have to be faster, on a port that clusters may block. So a parent process, which does nothing else, starts the program,
keeps what the service prints, and when the program aborts says in one line what the text says: it works with every
version of JAX, whatever else aborts with the program, and needs no network of its own.
"""

import collections
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

from fasseg_jax.runtime.command_line import print_error
from fasseg_jax.runtime.files import Path

__all__ = ["INTERRUPTED", "explain_abort", "has_several_hosts", "is_tpu_machine", "supervise", "tell_supervisor"]

INTERRUPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: a scheduler may start the same command again
VARIABLE = "FASSEG_SUPERVISOR"  # in the child's environment: file descriptors of the channel and of the log
PASSED_ON = (signal.SIGINT, signal.SIGTERM)  # signals that the parent sends on to its child
KEPT_LINES = 5000

LOG_LINE = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ ([\w.]+):\d+\] ")  # of C++ libraries; the name is that of a file
# Files whose lines are kept: those of the coordination, and of the advice to report a slow compilation to XLA.
HIDDEN = re.compile(r"(coordination\w*|preemption\w*|client|distributed\w*|slow_operation_alarm)\.(cc|h)")
SILENT = re.compile(r"stopped sending heartbeats\):\n(?P<tasks>(?:.*\n)*?)The tasks have crashed")
AGAIN = "start the same command on all hosts again: it goes on from what was saved"

_channel: socket.socket | None = None  # to the parent, if there is one


def has_several_hosts() -> bool:
    """Whether this process is one of several, as far as that can be told without JAX."""
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if all(os.environ.get(name) for name in names):
        return os.environ["JAX_NUM_PROCESSES"] != "1"
    return os.environ.get("SLURM_NTASKS", "1") != "1" or is_tpu_machine()


def is_tpu_machine() -> bool:
    """Whether this is a Cloud TPU machine, perhaps one of a pod: it has TPU devices and the library for them."""
    has_devices = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return has_devices and importlib.util.find_spec("libtpu") is not None


def supervise() -> None:
    """On several hosts, run this program in a child process and end with its status; the child returns from here.

    Call it at the beginning of a program, before JAX is imported.
    """
    if VARIABLE in os.environ:
        _begin_as_child(*map(int, os.environ.pop(VARIABLE).split()))
    elif has_several_hosts():
        sys.exit(_run_child())


def tell_supervisor(**facts: Any) -> None:
    """Tell the parent, if there is one, what its messages say: `host`, `hosts`, `seconds` until a host is lost."""
    if _channel is not None:
        with contextlib.suppress(OSError):
            _channel.sendall(json.dumps(facts).encode() + b"\n")


def _begin_as_child(channel: int, log: int) -> None:
    """Send what C++ writes to stderr to the parent, not what Python writes; end if the parent does."""
    global _channel
    _channel = socket.socket(fileno=channel)
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(log, 2)
    os.close(log)

    def end_with_parent() -> None:
        assert _channel is not None
        with contextlib.suppress(OSError):
            _channel.recv(1)  # which ends only with the parent
        os._exit(1)

    threading.Thread(target=end_with_parent, name="supervisor", daemon=True).start()


def _run_child() -> int:
    """Run this program in a child process, and return the exit status."""
    ours, theirs = socket.socketpair()
    log, childs_log = os.pipe()
    child: subprocess.Popen | None = None
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        if child is not None:
            child.send_signal(number)

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env={**os.environ, VARIABLE: f"{theirs.fileno()} {childs_log}"},
        pass_fds=(theirs.fileno(), childs_log),
        process_group=0,  # a terminal's Ctrl-C reaches the child once, through this process
    )
    for signal_number in received:
        child.send_signal(signal_number)
    theirs.close()
    os.close(childs_log)
    kept = _Log(os.fdopen(log, errors="replace"))
    kept.start()
    status = child.wait()
    kept.join(timeout=5)  # processes that the child has started may hold the pipe
    return _explain_end(status, "".join(kept.lines), _told(ours), received)


class _Log(threading.Thread):
    """Prints what C++ libraries write, but keeps what is about the coordination of hosts, and all after a fatal error.

    Attributes:
      lines: what is kept.
    """

    def __init__(self, stream: IO[str]):
        super().__init__(name="log", daemon=True)
        self._stream = stream
        self.lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)

    def run(self) -> None:
        keeps = fatal = False
        for line in self._stream:
            if match := LOG_LINE.match(line):
                fatal = fatal or line.startswith("F")
                keeps = fatal or HIDDEN.fullmatch(match.group(1)) is not None
            if keeps:
                self.lines.append(line)
            else:
                sys.stderr.write(line)
                sys.stderr.flush()


def _told(channel: socket.socket) -> dict[str, Any]:
    """What the child has told."""
    channel.settimeout(1)
    content = b""
    with contextlib.suppress(OSError):
        while part := channel.recv(1 << 16):
            content += part
    facts: dict[str, Any] = {}
    for line in content.splitlines():
        facts |= json.loads(line)
    return facts


def _explain_end(status: int, log: str, facts: Mapping[str, Any], received: list[int]) -> int:
    """Say why the child was ended by a signal, if it was, and return the exit status."""
    if status >= 0:
        return status  # it has said why by itself
    # While it writes the stacks of its threads, an aborted program may also fail in another way.
    aborted = status == -signal.SIGABRT or "Fatal Python error: Aborted" in log
    if aborted and (reason := explain_abort(log, facts)):
        return print_error(f"{reason}; {AGAIN}", INTERRUPTED)
    sys.stderr.write(log)
    if -status not in received:
        name = signal.Signals(-status).name
        why = "; the kernel does that if memory runs out" if status == -signal.SIGKILL else ""
        print_error(f"{name} has ended the program{why}; {AGAIN}", 128 - status)
    return 128 - status


def explain_abort(log: str, facts: Mapping[str, Any]) -> str | None:
    """What JAX's coordination service says before it aborts a program, in words; None if it says nothing.

    Args:
      log: what C++ wrote.
      facts: of `tell_supervisor`.
    """
    host, hosts, seconds = facts.get("host"), facts.get("hosts"), facts.get("seconds")
    if "RegisterTask" in log:
        return f"not all hosts have started within {facts.get('start_seconds')} s"
    if match := SILENT.search(log):
        # A line for each task, "1" or "/job:jax_worker/replica:0/task:1"
        lost = sorted({int(number) for number in re.findall(r"(\d+)\s*$", match["tasks"], re.MULTILINE)})
        if host in lost:
            return f"host {host} of {hosts}, this one, was given up: it gave no sign of life for {seconds} s"
        if lost:
            names = f"host {lost[0]}" if len(lost) == 1 else f"hosts {', '.join(map(str, lost))}"
            return f"{names} of {hosts} {'is' if len(lost) == 1 else 'are'} lost: no sign of life for {seconds} s"
    if "leader task" in log:
        return f"host 0 of {hosts} is lost: its program has ended, or the network to it"
    if "distributed service detected fatal errors" in log:
        return f"a host of {hosts} is lost"
    return None
