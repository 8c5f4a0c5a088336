"""The numbers of a training: how long steps take, whether losses are finite, where all of it is written."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from fasseg_jax.runtime.files import Path

__all__ = ["MetricLog", "StepClock"]


class StepClock:
    """Splits the time of steps into waiting for the input and the rest."""

    def __init__(self, batch_size: int):
        """`batch_size` images a step."""
        self._batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget what was measured; what ran since the latest step does not count."""
        self._begin, self._input, self._steps = time.perf_counter(), 0.0, 0

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches; the time that each is waited for counts, but not the first, with whose step all is compiled."""
        iterator = iter(batches)
        for number in itertools.count():
            if number == 1:
                self.restart()  # the first step compiled the program
            begin = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._input += time.perf_counter() - begin
            self._steps += 1
            yield batch

    def rates(self) -> dict[str, float]:
        """Means over the steps since the last call: images/s, seconds of a step for input and for the rest."""
        seconds = (time.perf_counter() - self._begin) / max(self._steps, 1)
        waited = self._input / max(self._steps, 1)
        self.restart()
        return {
            "images_per_s": self._batch_size / seconds,
            "seconds_input": waited,
            "seconds_compute": seconds - waited,
        }


class MetricLog:
    """Writes to WORKDIR/metrics.jsonl and WORKDIR/tensorboard, and shows a progress bar on a terminal.

    All hosts compute, one writes: the others' `writes` is False, and nothing happens.
    """

    def __init__(self, workdir: Path, steps: int, first_step: int, writes: bool = True):
        """`steps` in all, of which `first_step` were done by an earlier run."""
        self._writes = writes
        if not writes:
            return
        self._lines = (workdir / "metrics.jsonl").open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)
        self._shown = first_step

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Log scalars after `step` steps."""
        if not self._writes:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def progress(self, step: int, text: str) -> None:
        """Move the bar to `step`, with `text` behind it; without a terminal print a line."""
        if not self._writes:
            return
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._shown)
        self._shown = step
        if self._bar.disable:
            print(f"step {step}: {text}", flush=True)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Log a picture, uint8 (H, W, 3)."""
        if self._writes:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def say(self, message: str) -> None:
        """Print a line without disturbing the bar."""
        if self._writes:
            tqdm.write(message)

    def close(self) -> None:
        """Write what is pending."""
        if self._writes:
            self._bar.close()
            self._board.close()
            self._lines.close()
