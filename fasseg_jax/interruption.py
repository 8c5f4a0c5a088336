"""Being told to stop: by a signal, or by the cluster's notice that a machine is taken away."""

import signal

import jax
from jax.experimental import multihost_utils

__all__ = ["Interruption"]


class Interruption:
    """Catches SIGTERM and Ctrl-C, so that the training can save first; a second Ctrl-C stops at once.

    With several hosts all must stop after the same step: JAX's own service then listens to SIGTERM and agrees on it.
    """

    def __init__(self):
        """Starts to listen; call it from the main thread."""
        self._signalled = False
        signal.signal(signal.SIGINT, self._receive)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame):
        del frame
        self._signalled = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after this step; all hosts call it after every step."""
        if jax.process_count() == 1:
            return self._signalled
        return multihost_utils.reached_preemption_sync_point(step)
