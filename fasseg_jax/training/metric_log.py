"""The numbers of a training: the files and the progress bar that show them."""

import json
import os
import socket
import struct
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tqdm import tqdm

from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.record_file import RecordFile
from fasseg_jax.training.trackers import Trackers

__all__ = ["METRICS_FILE", "MetricLog"]

METRICS_FILE = "metrics.jsonl"  # in the folder of a run


class _Board:
    """A file for TensorBoard. The usual writers have threads, in which an error is lost or lets the program hang."""

    def __init__(self, folder: Path, first_step: int):
        """TensorBoard hides what earlier files say of steps after `first_step`."""
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordFile(folder / name)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(Event(wall_time=time.time(), step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, summary: Summary) -> None:
        self._add(Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event: Event) -> None:
        """Append the event as a TFRecord: its length and itself, each with a checksum."""
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
        self._file.add(length + next(checksums) + content + next(checksums))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class MetricLog:
    """Writes to WORKDIR/metrics.jsonl and WORKDIR/tensorboard, and shows a progress bar on a terminal.

    Only one host writes. On the others `writes` is False, and the methods do nothing. A file that cannot be written
    raises a `WriteError`.
    """

    def __init__(
        self, workdir: Path, steps: int, first_step: int, writes: bool = True, trackers: Trackers | None = None
    ):
        """The training has `steps` steps; earlier runs did the first `first_step` of them."""
        self._writes, self._trackers = writes, trackers
        if not writes:
            return
        self._lines = RecordFile(workdir / METRICS_FILE)
        self._board = _Board(workdir / "tensorboard", first_step)
        self._bar = tqdm(total=steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)
        self._shown = first_step

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Log scalars after `step` steps."""
        if not self._writes:
            return
        self._lines.add(json.dumps({"step": step, "time": round(time.time(), 3), **values}).encode() + b"\n")
        scalars = [value for name, number in values.items() for value in summary.scalar(name, number).value]
        self._board.add(step, Summary(value=scalars))
        if self._trackers:
            self._trackers.numbers(step, values)

    def progress(self, step: int, text: str) -> None:
        """Move the bar to `step` and show `text` behind it. Without a terminal, print a line."""
        if not self._writes:
            return
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._shown)
        self._shown = step
        if self._bar.disable:
            print(f"step {step}: {text}", flush=True)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Log a uint8 picture (H, W, 3)."""
        if self._writes:
            self._board.add(step, summary.image(name, picture, dataformats="HWC"))

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._writes:
            tqdm.write(message)

    def flush(self) -> None:
        """Upload what is logged, if the run's folder is in a bucket; elsewhere all is written at once."""
        if self._writes:
            self._lines.flush()
            self._board.flush()

    def close(self) -> None:
        """Close the files, to which all is written."""
        if self._writes:
            if self._trackers:
                self._trackers.close()
            self._bar.close()
            self._board.close()
            self._lines.close()
