"""The progress display of an evaluation, with the mIoU so far: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Iterable

import jax
from tqdm import tqdm

from fasseg_jax.evaluation.evaluate import ImageResult, sum_counts
from fasseg_jax.evaluation.metrics import Counts, metrics_of
from fasseg_jax.evaluation.tables import percent
from fasseg_jax.runtime.command_line import print_error

__all__ = ["EvaluationDisplay"]

LINE_EVERY = 30  # seconds between lines, without a terminal


class EvaluationDisplay:
    """Shows how far the evaluation has come; a context manager. Only the first host shows it, for its own images."""

    def __init__(self, done: Iterable[ImageResult], remaining: int, num_classes: int):
        """Start the display.

        Args:
          done: results of earlier runs.
          remaining: how many images are left; call `update` for each.
          num_classes: K.
        """
        done = list(done)
        self._total = sum_counts(done, num_classes).to_vector()
        self._earlier, self._images = len(done), len(done) + remaining
        self._shown = 0
        self._is_first_host = jax.process_index() == 0
        disable = None if self._is_first_host else True  # None: tqdm disables the bar if there is no terminal
        self._bar = tqdm(total=self._images, initial=len(done), unit="image", disable=disable, dynamic_ncols=True)
        self._first_time = self._line_time = 0.0

    def update(self, result: ImageResult) -> None:
        """Show that another image is done."""
        self._total[result.positions] += result.values
        self._shown += 1
        self._bar.set_postfix_str(self._mean_iou(), refresh=False)
        self._bar.update()
        if self._bar.disable and self._is_first_host:
            self._print_line(time.monotonic())

    def _print_line(self, now: float) -> None:
        """Print a line, unless there was one only a moment ago."""
        if self._shown == 1:
            self._first_time = now  # the rate leaves out the first image, which took the compilation
        elif now - self._line_time < LINE_EVERY:
            return
        self._line_time = now
        line = f"image {self._earlier + self._shown} of {self._images}: {self._mean_iou()} so far"
        if self._shown > 1:
            rate = (self._shown - 1) / (now - self._first_time)
            left = tqdm.format_interval((self._images - self._earlier - self._shown) / rate)
            line += f", {rate:.2f} images/s, {left} left"
        print(line, flush=True)

    def print_error(self, message: str) -> None:
        """Print a line on stderr without disturbing the bar."""
        with tqdm.external_write_mode():
            print_error(message, status=0)

    def __enter__(self) -> "EvaluationDisplay":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def _mean_iou(self) -> str:
        return f"mIoU {percent(metrics_of(Counts.from_vector(self._total)).mean_iou)}"
