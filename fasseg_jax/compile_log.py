"""How long a program has spent on compiling."""

import jax

__all__ = ["CompileTimer"]


class CompileTimer:
    """Adds up the seconds that JAX spends on compiling, or on loading what was compiled in an earlier run.

    Attributes:
      seconds: since the timer was made.
    """

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering, the compiler proper
            self.seconds += duration
