"""Being told to stop: by a signal, or by the cluster's notice that a machine is taken away."""

import signal

import jax
from jax.experimental import multihost_utils

__all__ = ["INTERRUPTED", "Interruption"]

INTERRUPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: schedulers may start the same command again


class Interruption:
    """Catches SIGTERM and Ctrl-C, so that a program can save first; a second Ctrl-C stops at once.

    Several hosts that train must all stop after the same step: JAX's own service then listens to SIGTERM and agrees on
    it.
    """

    def __init__(self, together: bool = True):
        """Starts to listen; call it from the main thread. Not `together`, each host stops by its own signals alone."""
        self._signalled = False
        self._together = together and jax.process_count() > 1
        signal.signal(signal.SIGINT, self._receive)
        if not self._together:
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame):
        del frame
        self._signalled = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def requested(self, step: int = 0) -> bool:
        """Whether to save and stop after this step; hosts that stop together all call it after every step."""
        if not self._together:
            return self._signalled
        return multihost_utils.reached_preemption_sync_point(step)
