"""What the time of a run is spent on, over restarts; compared with sums of times that the tests make up."""

import itertools
import json
import time

import pytest

from fasseg_jax.training import run_clock
from fasseg_jax.training.run_clock import RunClock, describe_seconds, goodput


class Times:
    """Takes the place of the module `time`: it stands still unless a test lets it go on."""

    def __init__(self, now):
        self.now = now

    def time(self):
        return self.now

    def perf_counter(self):
        return self.now - 1000


@pytest.fixture
def times(monkeypatch):
    times = Times(50_000.0)
    monkeypatch.setattr(run_clock, "time", times)
    return times


def line(step, times, clock):
    return json.dumps({"step": step, "time": times.now, **clock.numbers()}).encode() + b"\n"


def steps(clock, times, number, waiting, computing):
    """Do steps that wait and compute so many seconds each; the first batch is a part of the start."""

    def batches():
        for _ in range(number + 1):
            times.now += waiting
            yield None

    for step, _ in enumerate(itertools.islice(clock.waiting(batches()), number + 1)):
        if step:
            times.now += computing
        else:
            clock.spend("compute")


def test_the_time_of_a_run_without_restart(times):
    clock = RunClock()
    times.now += 100
    steps(clock, times, 5, waiting=1, computing=3)
    seconds = clock.interval()
    assert seconds["input"] == pytest.approx(5 / 6) and seconds["compute"] == pytest.approx(15 / 6)  # of six steps
    clock.spend("evaluation")
    times.now += 30
    clock.spend("checkpoints")
    times.now += 12
    steps(clock, times, 2, waiting=0, computing=4)
    assert clock.interval()["checkpoints"] == pytest.approx(12 / 3)
    totals = {"input": 5, "compute": 23, "startup": 101, "checkpoints": 12, "evaluation": 30, "repeated": 0, "away": 0}
    assert clock.totals == pytest.approx(totals)
    assert clock.numbers()["goodput"] == round(28 / 171, 4)
    words = "start and compilation 101 s, checkpoints 12 s, evaluation 30 s"
    assert describe_seconds(clock.totals) == f"Goodput 16% of 2.9 min since the first start: steps 28 s, {words}."


def test_restarts_repeat_steps_and_take_time(times):
    """The first start computes 10 steps, of which a checkpoint holds 6; the second none; the third goes on from it."""
    log, clock = b'{"step": 5, "loss": 1.0}\n', RunClock()  # a line of an earlier version
    times.now += 20
    clock.spend("compute")
    for step in range(1, 11):
        times.now += 7
        log += line(step, times, clock)
    times.now += 500
    log += b'{"step": 11, "time": 50'  # a kill cut it off

    clock = RunClock()
    clock.resume(log, first_step=6)
    expected = {"startup": 20, "compute": 6 * 7, "repeated": 4 * 7, "away": 500}
    assert {name: seconds for name, seconds in clock.totals.items() if seconds} == pytest.approx(expected)
    times.now += 25
    log += b"\n" + line(6, times, clock)  # of an evaluation, for example
    times.now += 40

    clock = RunClock()
    clock.resume(log, first_step=6)
    times.now += 15
    clock.spend("compute")
    times.now += 4 * 7
    expected |= {"startup": 20 + 25 + 15, "away": 500 + 40, "compute": 10 * 7}
    numbers = clock.numbers()
    assert {name: seconds for name, seconds in clock.totals.items() if seconds} == pytest.approx(expected)
    assert sum(clock.totals.values()) == pytest.approx(times.now - 50_000)  # no second is lost, none counted twice
    assert goodput(clock.totals) == pytest.approx(70 / 698) and numbers["goodput"] == round(70 / 698, 4)


def test_a_restart_without_checkpoint_repeats_all(times):
    clock = RunClock()
    clock.spend("compute")
    times.now += 9
    log = line(3, times, clock)
    clock = RunClock()
    clock.resume(log, first_step=0)
    assert clock.totals["repeated"] == pytest.approx(9) and clock.totals["compute"] == 0


def test_what_follows_the_last_batch_is_no_step(times):
    clock = RunClock()
    for _ in clock.waiting([None]):
        clock.spend("compute")
        times.now += 2
    times.now += 8
    clock.numbers()
    assert {name: seconds for name, seconds in clock.totals.items() if seconds} == {"compute": 2, "checkpoints": 8}


def test_real_time_is_measured():
    clock = RunClock()
    clock.spend("compute")
    time.sleep(0.05)
    clock.spend("input")
    assert 0.05 <= clock.totals["compute"] < 1
