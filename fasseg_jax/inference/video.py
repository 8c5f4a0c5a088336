"""Segmentation of a video or of a camera's images: frames in, an H.264 video with the overlay out (PyAV, no sound)."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from jaxtyping import UInt, UInt8
from tqdm import tqdm

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.video_reader import CAMERA, Frame, VideoError, VideoReader, is_video, local_url
from fasseg_jax.runtime.files import Path
from fasseg_jax.visualization.legend import VideoLegend
from fasseg_jax.visualization.overlay import blend

__all__ = ["CAMERA", "VideoError", "VideoReader", "VideoSummary", "VideoWriter", "is_video", "segment_video"]

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]  # an optional extra; `VideoReader` asks for it

QUALITY = {"crf": "18", "preset": "veryfast"}  # of x264: no visible loss


@dataclasses.dataclass(frozen=True)
class VideoSummary:
    """What became of a video.

    Attributes:
      path: the video written.
      frames: number of frames written.
      lost: number of frames left out: the decoder failed, or the file announces them but does not hold them.
      damaged: number of frames of which the decoder had to fill in a part.
      seconds: duration of the whole, compilation included.
      stopped: whether it was stopped before its end. The video can be played as far as it goes.
      notes: what the source left open, and how it was decided; a sentence each.
    """

    path: Path
    frames: int
    lost: int
    damaged: int
    seconds: float
    stopped: bool
    notes: tuple[str, ...] = ()


def segment_video(
    segmenter: Segmenter,
    source: str,
    folder: Path,
    *,
    batch_size: int = 1,
    warning: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> VideoSummary:
    """Segment all frames, and write FOLDER/NAME_overlay.mp4, with the frames' times and without sound.

    Args:
      segmenter: the model, with classes.
      source: a video file; or "camera:0", which only `stopped` ends.
      folder: folder for the video; made if absent.
      batch_size: frames per device in a batch.
      warning: a sentence below the frames, in red.
      stopped: called before each frame; once it returns True the video ends there.

    Raises:
      VideoError: there is no such file or camera, it holds no video, or no frame can be decoded. Nothing is written.
      OSError: the video cannot be written.
      FloatingPointError: the network's output is not finite; the message names the frame.
    """
    if segmenter.classes is None:
        raise ValueError("a video's legend needs a segmenter with classes")
    start = time.perf_counter()
    # On Windows a camera has a name, which may hold what a file's name must not.
    name = re.sub(r"[^\w -]", "", source) if source.startswith(CAMERA) else Path(source).stem
    path = folder / f"{name}_overlay.mp4"
    frames = 0
    with VideoReader(source) as reader:
        segmented = _segment_in_order(segmenter, reader, batch_size, stopped)
        with VideoWriter(path, reader.rate, segmenter.classes, warning) as writer:
            for frame, labels in tqdm(segmented, total=reader.announced, unit="frame", disable=None):
                writer.write(frame, labels)
                frames += 1
    if not frames and not stopped():
        raise VideoError(f"{source}: no frame could be decoded")
    lost = reader.failed if stopped() else max(reader.failed, (reader.announced or 0) - reader.reached)
    seconds = time.perf_counter() - start
    return VideoSummary(path, frames, lost, reader.damaged, seconds, stopped(), reader.notes)


def _segment_in_order(
    segmenter: Segmenter, frames: Iterable[Frame], batch_size: int, stopped: Callable[[], bool]
) -> Iterator[tuple[Frame, UInt[np.ndarray, "H W"]]]:
    """Frames and their labels in the video's order, although the segmenter gives labels in any order."""
    waiting: dict[int, Frame] = {}
    segmented: dict[int, np.ndarray] = {}

    def photos() -> Iterator[tuple[int, np.ndarray]]:
        for index, frame in enumerate(frames):
            if stopped():
                return
            waiting[index] = frame
            yield index, frame.image

    next_index = 0
    try:
        for index, labels in segmenter.segment_all(photos(), batch_size):
            segmented[index] = labels
            while next_index in segmented:
                yield waiting.pop(next_index), segmented.pop(next_index)
                next_index += 1
    except FloatingPointError as error:
        raise FloatingPointError(f"frame {error}") from None


class VideoWriter:
    """Writes frames with their overlay and a legend below; a context manager. The first frame creates the file.

    Drawing and encoding run in a thread of their own, while the network predicts the next frame.
    """

    def __init__(self, path: Path, rate: Fraction, classes: ClassTable, warning: str | None = None):
        """Prepare to write.

        Args:
          path: the file; its folder is made if absent.
          rate: frames per second.
          classes: names and palette.
          warning: a sentence below the frames, in red.
        """
        self._path, self._rate, self._classes, self._warning = path, rate, classes, warning
        self._encoder: _Encoder | None = None
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def write(self, frame: Frame, labels: UInt[np.ndarray, "H W"]) -> None:
        """Add a frame, once the one before is written; an error in writing that one is raised here."""
        self._wait()
        self._pending = self._thread.submit(self._draw, frame, labels)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_) -> None:
        """Complete the file, also after an error, so that it can be played as far as it goes."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()
            if self._encoder is not None:
                self._encoder.close()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _draw(self, frame: Frame, labels: np.ndarray) -> None:
        # H.264 stores one color for four pixels: a last odd row or column is left out, and a single one doubled.
        height, width = (max(2, side // 2 * 2) for side in labels.shape)
        picture = blend(frame.image, labels, self._classes.palette)[:height, :width]
        missing = height - picture.shape[0], width - picture.shape[1]
        picture = np.pad(picture, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="edge")
        if self._encoder is None:
            self._legend = VideoLegend(self._classes, width, self._warning)
            self._encoder = _Encoder(self._path, (height + self._legend.height, width), self._rate)
        self._encoder.add(np.concatenate([picture, self._legend.draw(labels)]), frame.time)


class _Encoder:
    """An H.264 file that is open for writing. Its methods raise an `OSError` that names the file."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._size = path, size
        with self._named_errors():
            self._container = av.open(local_url(path), "w", options={"movflags": "faststart"})
            self._stream = self._container.add_stream("libx264", rate=rate, options=QUALITY)
            self._stream.height, self._stream.width = size
            self._stream.pix_fmt = "yuv420p"
            self._time_base = Fraction(1, 90_000)  # seconds; fine enough for the times of any source
            self._stream.codec_context.time_base = self._time_base
        self._last_time = -1  # in units of the time base
        self._failed = False

    def add(self, picture: UInt8[np.ndarray, "H W 3"], seconds: Fraction) -> None:
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        self._last_time = max(self._last_time + 1, round(seconds / self._time_base))
        frame.time_base, frame.pts = self._time_base, self._last_time
        with self._named_errors():
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        with self._named_errors(), self._container:
            if not self._failed:  # after a full disk, FFmpeg may crash if it is given more
                self._container.mux(self._stream.encode())

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except av.error.FFmpegError as error:
            self._failed = True
            if isinstance(error, OSError):  # such as a full disk
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            height, width = self._size
            raise OSError(f"{self._path}: FFmpeg cannot write H.264 of {width}x{height} pixels, {error}") from error
