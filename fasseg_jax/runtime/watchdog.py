"""A watchdog: a program that makes no progress says where it hangs, and ends."""

import faulthandler
import os
import sys
import threading

from fasseg_jax.runtime.command_line import print_error

__all__ = ["Watchdog"]

TICKS = 20  # in the time without progress that is allowed


class Watchdog:
    """Prints the stacks of all threads, and ends the program, if it makes no progress. A context manager.

    Time is counted in ticks, so that a program that was stopped and continued, or whose machine slept, is not ended.
    """

    def __init__(self, minutes: float, what: str, status: int):
        """Start to watch.

        Args:
          minutes: without progress, after which the program ends; 0: never.
          what: what counts as progress, in words.
          status: the exit status then.
        """
        self._seconds, self._what, self._status = minutes * 60, what, status
        self._ticks = 0
        self._ended = threading.Event()
        if minutes:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def progress(self) -> None:
        """Say that the program makes progress."""
        self._ticks = 0

    def _watch(self) -> None:
        while not self._ended.is_set():
            # If not even this thread runs, because another one holds Python's lock, faulthandler ends the program.
            faulthandler.dump_traceback_later(2 * self._seconds, exit=True, file=sys.stderr)
            if self._ended.wait(self._seconds / TICKS):
                break
            self._ticks += 1
            if self._ticks > TICKS:
                self._end()
        faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        sys.stdout.flush()
        faulthandler.dump_traceback(file=sys.stderr)
        minutes = f"{self._seconds / 60:g} minutes"
        print_error(f"for {minutes} there was no {self._what}; above is where each thread hangs", self._status)
        sys.stderr.flush()
        os._exit(self._status)

    def close(self) -> None:
        """End the watch."""
        self._ended.set()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_) -> None:
        self.close()
