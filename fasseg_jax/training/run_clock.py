"""What the time of a run is spent on, from its first start, over all restarts.

The share of the time spent in steps that count is called goodput. Each line of the log that a `RunClock` adds to holds
the seconds so far of each purpose; a run that is resumed goes on from there.
"""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["LOST", "STEP", "RunClock", "describe_seconds", "goodput"]

STEP = ("input", "compute")  # what the time of a step is spent on: waiting for its batch, and all else
# What other time is spent on -> the words for it.
LOST = {
    "startup": "start and compilation",
    "checkpoints": "checkpoints",
    "evaluation": "evaluation",
    "repeated": "steps that a restart repeated",
    "away": "between the last line of the log and the next start",
}
PREFIX = "total_seconds_"  # of the names in the log
TIME = "time"  # in the log: seconds since 1970


class RunClock:
    """Adds up the seconds of a run by purpose. The time from its making on is one of "startup".

    Attributes:
      totals: purpose, one of `STEP` and `LOST` -> seconds since the run's first start.
    """

    def __init__(self):
        self.totals = dict.fromkeys([*STEP, *LOST], 0.0)
        self._started = time.time()
        self._purpose, self._since = "startup", time.perf_counter()
        self._begin_interval()

    def resume(self, log: bytes, first_step: int) -> None:
        """Go on from the log of the earlier starts of this run.

        Args:
          log: lines of JSON. Those that a kill cut off, and those of versions that did not log this, are left out.
          first_step: the step of the checkpoint from which the run resumes; later steps are repeated.
        """
        lines = list(_lines_of_clocks(log))
        if not lines:
            return
        latest = lines[-1]
        kept = next((line for line in reversed(lines) if line["step"] <= first_step), None)
        for purpose in self.totals:
            self.totals[purpose] += latest[PREFIX + purpose]
        for purpose in STEP:
            until_checkpoint = kept[PREFIX + purpose] if kept else 0.0
            self.totals["repeated"] += self.totals[purpose] - until_checkpoint
            self.totals[purpose] = until_checkpoint
        self.totals["away"] += max(self._started - latest[TIME], 0)  # clocks of two machines may differ

    def spend(self, purpose: str) -> None:
        """From now on, time is spent on `purpose`."""
        now = time.perf_counter()
        self.totals[self._purpose] += now - self._since
        self._interval[self._purpose] += now - self._since
        self._purpose, self._since = purpose, now

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches.

        The time of the first is one of "startup", until `spend` is called, the time after the last of "checkpoints".
        """
        iterator = iter(batches)
        for number in itertools.count():
            if number:
                self.spend("input")
            try:
                batch = next(iterator)
            except StopIteration:
                self.spend("checkpoints")  # the latest is still being written
                return
            if number:
                self.spend("compute")
            self._steps += 1
            yield batch

    def interval(self) -> dict[str, float]:
        """Seconds per step of each purpose, since the latest call."""
        self.spend(self._purpose)
        seconds = {purpose: total / max(self._steps, 1) for purpose, total in self._interval.items()}
        self._begin_interval()
        return seconds

    def _begin_interval(self) -> None:
        self._interval, self._steps = dict.fromkeys(self.totals, 0.0), 0

    def numbers(self) -> dict[str, float]:
        """The totals until now, and the goodput, as they are logged."""
        self.spend(self._purpose)
        totals = {PREFIX + purpose: round(seconds, 3) for purpose, seconds in self.totals.items()}
        return {"goodput": round(goodput(self.totals), 4), **totals}


def goodput(totals: dict[str, float]) -> float:
    """The share of the seconds that was spent on steps that count."""
    everything = sum(totals.values())
    return sum(totals[purpose] for purpose in STEP) / everything if everything else 0.0


def describe_seconds(totals: dict[str, float]) -> str:
    """The totals of a run in a line."""
    parts = {"steps": sum(totals[purpose] for purpose in STEP)}
    parts |= {words: totals[purpose] for purpose, words in LOST.items() if totals[purpose] >= 0.5}
    listed = ", ".join(f"{words} {_duration(seconds)}" for words, seconds in parts.items())
    return f"Goodput {goodput(totals):.0%} of {_duration(sum(totals.values()))} since the first start: {listed}."


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _lines_of_clocks(log: bytes) -> Iterator[dict[str, float]]:
    names = ["step", TIME, *(PREFIX + purpose for purpose in (*STEP, *LOST))]
    for line in log.splitlines():
        try:
            values = json.loads(line)
            yield {name: float(values[name]) for name in names}
        except (ValueError, KeyError, TypeError, OverflowError):
            continue
