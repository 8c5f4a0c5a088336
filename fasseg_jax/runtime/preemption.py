"""Preemption and interruption: signals, and the cluster's notice that it takes a machine away."""

import signal

import jax
from jax.experimental import multihost_utils

__all__ = ["Interruption"]


class Interruption:
    """Catches SIGTERM and Ctrl-C, so that a program can save first. A second Ctrl-C stops it at once.

    Hosts that train together must stop after the same step. There JAX's own service catches SIGTERM, and the hosts
    agree on the step.
    """

    def __init__(self, together: bool = True):
        """Start to listen. Call it from the main thread.

        Args:
          together: all hosts stop after the same step; otherwise each host stops on its own signals.
        """
        self._signaled = False
        self._together = together and jax.process_count() > 1
        signal.signal(signal.SIGINT, self._receive)
        if not self._together:
            signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number, frame):
        del frame
        self._signaled = True
        if number == signal.SIGINT:  # some schedulers send SIGTERM several times
            signal.signal(number, signal.default_int_handler)

    def requested(self, step: int = 0) -> bool:
        """Whether to save and stop after this step. Hosts that stop together must all call it after every step."""
        if not self._together:
            return self._signaled
        return multihost_utils.reached_preemption_sync_point(step)
