"""scripts/run_until_done.sh: which statuses it restarts on, how often, and what signals do."""

import os
import signal
import subprocess

import pytest

from tests.helpers import ROOT

SCRIPT = ROOT / "scripts" / "run_until_done.sh"

# Ends with the statuses of the file `statuses`, one a start; a status over 128 is a signal. It lists its starts.
PROGRAM = """
status=$(head -n 1 statuses); sed -i 1d statuses; echo "$*" >> starts
[ "$status" -le 128 ] || kill -$((status - 128)) $$
exit "$status"
"""


def run(folder, statuses, **variables):
    (folder / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    process = subprocess.run(
        [SCRIPT, "bash", "-c", PROGRAM, "program", "--workdir", "a b"],
        cwd=folder,
        env={**os.environ, "RESTART_WAIT": "0", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    starts = (folder / "starts").read_text().splitlines()
    assert set(starts) == {"--workdir a b"}
    return process, len(starts)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([0], (0, 1)),
        ([1], (1, 1)),
        ([2], (2, 1)),
        ([75, 75, 0], (0, 3)),
        ([128 + signal.SIGABRT, 128 + signal.SIGKILL, 75, 1], (1, 4)),
    ],
)
def test_it_restarts_only_what_can_go_on(tmp_path, statuses, expected):
    process, starts = run(tmp_path, statuses)
    assert (process.returncode, starts) == expected, process.stderr
    assert process.stderr.count("; restart ") == starts - 1


def test_it_gives_up(tmp_path):
    process, starts = run(tmp_path, [75] * 9, RESTARTS="3")
    assert (process.returncode, starts) == (75, 4)
    assert process.stderr.endswith("run_until_done.sh: status 75 after 3 restarts; giving up\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_passed_on_and_nothing_restarts(tmp_path, name):
    """The program needs a moment to save, and is not left alone."""
    program = "trap 'sleep 0.3; echo saved; exit 75' TERM INT; echo started; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [SCRIPT, "bash", "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored if the tests run in the background
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(getattr(signal, name))
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 75


def test_a_signal_ends_the_pause(tmp_path):
    process = subprocess.Popen(
        [SCRIPT, "bash", "-c", "exit 75"],
        cwd=tmp_path,
        env={**os.environ, "RESTART_WAIT": "600"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline().endswith("restart 1 of 100 in 600 s\n")
    process.terminate()
    assert process.wait(timeout=60) == 75


@pytest.mark.parametrize(("variables", "command"), [({"RESTARTS": "many"}, ["true"]), ({}, [])])
def test_wrong_usage_is_one_line(variables, command):
    process = subprocess.run(
        [SCRIPT, *command], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith("run_until_done.sh: ") and process.stderr.count("\n") == 1
