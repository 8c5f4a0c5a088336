"""Segmentation of a video or of a camera's images: frames in, an H.264 video with the overlay out (PyAV, no sound)."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from jaxtyping import UInt, UInt8
from tqdm import tqdm

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.files import Path
from fasseg_jax.visualization.legend import VideoLegend
from fasseg_jax.visualization.overlay import blend

__all__ = ["CAMERA", "VideoError", "VideoReader", "VideoSummary", "VideoWriter", "is_video", "segment_video"]

try:
    import av
except ImportError:
    av = None  # type: ignore[assignment]  # an optional extra; `VideoReader` asks for it

VIDEO_EXTENSIONS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"])
CAMERA = "camera:"  # prefix of a camera's number, or on Windows of its name
# By platform, FFmpeg's input device and how it names a camera.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "video={}")}
QUALITY = {"crf": "18", "preset": "veryfast"}  # of x264: no visible loss


class VideoError(ValueError):
    """A video or camera cannot be read; the message names it and the reason."""


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
    """

    path: Path
    frames: int
    lost: int
    damaged: int
    seconds: float
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of a video.

    Attributes:
      image: RGB, upright.
      time: seconds since the first frame.
    """

    image: UInt8[np.ndarray, "H W 3"]
    time: Fraction


def is_video(source: str) -> bool:
    """Whether an input is a camera ("camera:0") or, by its extension, a video."""
    return source.startswith(CAMERA) or Path(source).suffix.lower() in VIDEO_EXTENSIONS


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
    name = source.replace(":", "") if source.startswith(CAMERA) else Path(source).stem
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
    lost = reader.failed if stopped() else max(reader.failed, (reader.announced or 0) - frames)
    return VideoSummary(path, frames, lost, reader.damaged, time.perf_counter() - start, stopped())


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


class VideoReader:
    """The frames of a video or camera, in order, all in the size of the first.

    Attributes:
      rate: average frames per second, as the file states it.
      announced: number of frames, as the file states it; None if it does not.
      failed: how often decoding has failed so far.
      damaged: number of frames so far of which the decoder had to fill in a part.
    """

    def __init__(self, source: str):
        """Open a video file or "camera:0"; raises `VideoError`."""
        if av is None:
            raise VideoError('videos and cameras need PyAV: pip install -e ".[video]"')
        name, device = _ffmpeg_input(source)
        try:
            self._container = av.open(name, "r", device)
        except av.error.FFmpegError as error:
            raise VideoError(f"{source}: {_reason(source, error)}") from error
        if not self._container.streams.video:
            held = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise VideoError(f"{source}: holds no video, only {held}")
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE"  # with threads the decoder does not report all damaged frames
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.announced = stream.frames or None
        self.failed = self.damaged = 0

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Decode; a frame that cannot be decoded is counted in `failed` and left out."""
        size, first = None, None
        for number, frame in enumerate(self._decoded()):
            self.damaged += frame.is_corrupt
            size = size or (frame.width, frame.height)
            image = frame.reformat(*size, format="rgb24").to_ndarray()
            image = np.rot90(image, round(frame.rotation / 90))  # phones often store videos on their side
            seconds = number / self.rate
            if frame.pts is not None and frame.time_base is not None:
                seconds = frame.pts * frame.time_base
            first = seconds if first is None else first
            yield Frame(np.ascontiguousarray(image), seconds - first)

    def _decoded(self) -> Iterator["av.VideoFrame"]:
        packets = self._container.demux(video=0)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError:  # the file ends here, or the camera was unplugged
                self.failed += 1
                return
            try:
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)  # only the video stream is demultiplexed
                    yield frame
            except av.error.FFmpegError:
                self.failed += 1


def _ffmpeg_input(source: str) -> tuple[str, str | None]:
    """FFmpeg's name of a source, and its input device if the source is a camera."""
    if not source.startswith(CAMERA):
        return str(Path(source)), None
    if sys.platform not in CAMERAS:
        raise VideoError(f"{source}: cameras can be read on {', '.join(CAMERAS)}, not on {sys.platform}")
    device, name = CAMERAS[sys.platform]
    return name.format(source.removeprefix(CAMERA)), device


def _reason(source: str, error: "av.error.FFmpegError") -> str:
    if source.startswith(CAMERA):
        return f"there is no such camera, or another program uses it ({error.strerror})"
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return "not a video that FFmpeg reads, or a damaged one"
    return str(error.strerror)


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
        # H.264 stores one color for four pixels: a last odd row or column is left out.
        height, width = (side // 2 * 2 for side in labels.shape)
        picture = blend(frame.image, labels, self._classes.palette)[:height, :width]
        if self._encoder is None:
            self._legend = VideoLegend(self._classes, width, self._warning)
            self._encoder = _Encoder(self._path, (height + self._legend.height, width), self._rate)
        self._encoder.add(np.concatenate([picture, self._legend.draw(labels)]), frame.time)


class _Encoder:
    """An H.264 file that is open for writing."""

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        self._stream = self._container.add_stream("libx264", rate=rate, options=QUALITY)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"
        self._time_base = Fraction(1, 90_000)  # seconds; fine enough for the times of any source
        self._stream.codec_context.time_base = self._time_base
        self._last_time = -1  # in units of the time base

    def add(self, picture: UInt8[np.ndarray, "H W 3"], seconds: Fraction) -> None:
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        self._last_time = max(self._last_time + 1, round(seconds / self._time_base))
        frame.time_base, frame.pts = self._time_base, self._last_time
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()
