"""Segmenting a video or what a camera sees: frames in, an H.264 film with the overlay out (PyAV; no sound)."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from tqdm import tqdm

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.runtime.files import Path
from fasseg_jax.visualization.legend import VideoLegend
from fasseg_jax.visualization.overlay import blend

__all__ = ["VideoError", "VideoReader", "VideoSummary", "VideoWriter", "is_video", "segment_video"]

try:
    import av
except ImportError:  # an optional extra, which `VideoReader` asks for
    av = None

VIDEO_EXTENSIONS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"])
CAMERA = "camera:"  # before a camera's number, or on Windows its name
# FFmpeg's input device by platform, and how it names a camera.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "video={}")}
QUALITY = {"crf": "18", "preset": "veryfast"}  # of x264: no visible losses


class VideoError(ValueError):
    """A video or camera that cannot be read; the message names it and the reason."""


@dataclasses.dataclass(frozen=True)
class VideoSummary:
    """What became of a video.

    Attributes:
      path: of the film written.
      frames: written.
      lost: frames that could not be decoded, or that the file announces and does not hold; they are left out.
      damaged: frames of which the decoder had to invent a part.
      seconds: the whole took, with compilation.
      stopped: on request, before the end; what was written until then can be played.
    """

    path: Path
    frames: int
    lost: int
    damaged: int
    seconds: float
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Frame:
    """A picture, uint8 RGB (H, W, 3), upright, and its time in seconds since the first frame."""

    image: np.ndarray
    time: Fraction


def is_video(source: str) -> bool:
    """Whether an input means a camera ("camera:0") or, by its extension, a video."""
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
    """Segment all frames and write FOLDER/NAME_overlay.mp4, with the frames' times and without sound.

    Args:
      segmenter: the model, with classes.
      source: a video file, or "camera:0", which ends only when stopped.
      folder: for the film; made if absent.
      batch_size: frames of a batch, on each device.
      warning: a sentence below the pictures, in red.
      stopped: asked before each frame; once it says True the film ends there.

    Raises:
      VideoError: no such file or camera, no video, or no frame that can be decoded; nothing is written then.
      OSError: the film cannot be written.
      FloatingPointError: the weights give numbers that are not finite.
    """
    start = time.perf_counter()
    name = source.replace(":", "") if source.startswith(CAMERA) else Path(source).stem
    path = folder / f"{name}_overlay.mp4"
    frames = 0
    with VideoReader(source) as reader:
        segmented = _in_order(segmenter, reader, batch_size, stopped)
        with VideoWriter(path, reader.rate, segmenter.classes, warning) as writer:
            for frame, labels in tqdm(segmented, total=reader.announced, unit="frame", disable=None):
                writer.write(frame, labels)
                frames += 1
    if not frames and not stopped():
        raise VideoError(f"{source}: no frame could be decoded")
    lost = reader.failed if stopped() else max(reader.failed, (reader.announced or 0) - frames)
    return VideoSummary(path, frames, lost, reader.damaged, time.perf_counter() - start, stopped())


def _in_order(
    segmenter: Segmenter, frames: Iterable[Frame], batch_size: int, stopped: Callable[[], bool]
) -> Iterator[tuple[Frame, np.ndarray]]:
    """Frames and their labels in the order of the film, whatever the order in which batches are answered."""
    waiting: dict[int, Frame] = {}
    answered: dict[int, np.ndarray] = {}

    def photos() -> Iterator[tuple[int, np.ndarray]]:
        for index, frame in enumerate(frames):
            if stopped():
                return
            waiting[index] = frame
            yield index, frame.image

    following = 0
    try:
        for index, labels in segmenter.segment_all(photos(), batch_size):
            answered[index] = labels
            while following in answered:
                yield waiting.pop(following), answered.pop(following)
                following += 1
    except FloatingPointError as error:
        raise FloatingPointError(f"frame {error}") from None


class VideoReader:
    """The frames of a video or camera, in order; all have the size of the first.

    Attributes:
      rate: frames a second, on average, as the file states it.
      announced: the number of frames that the file states; None if it does not.
      failed: how often decoding has failed so far.
      damaged: frames so far of which the decoder had to invent a part.
    """

    def __init__(self, source: str):
        """Open a video file or "camera:0"; raises `VideoError`."""
        if av is None:
            raise VideoError('videos and cameras need PyAV: pip install -e ".[video]"')
        self._source = source
        try:
            self._container = av.open(*_location(source))
        except av.error.FFmpegError as error:
            raise VideoError(f"{source}: {_reason(source, error)}") from error
        if not self._container.streams.video:
            held = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise VideoError(f"{source}: holds no pictures, only {held}")
        stream = self._container.streams.video[0]
        stream.thread_type = "NONE"  # with threads the decoder forgets to report some of the damages
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.announced = stream.frames or None
        self.failed = self.damaged = 0

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_):
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Decode; a frame that cannot be decoded is counted in `failed` and left out."""
        size, first = None, None
        for number, frame in enumerate(self._decoded()):
            self.damaged += frame.is_corrupt
            size = size or (frame.width, frame.height)
            image = frame.reformat(*size, format="rgb24").to_ndarray()
            image = np.rot90(image, round(frame.rotation / 90))  # films of phones often lie on their side
            stamp = Fraction(number) / self.rate if frame.pts is None else frame.pts * frame.time_base
            first = stamp if first is None else first
            yield Frame(np.ascontiguousarray(image), stamp - first)

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
                yield from packet.decode()
            except av.error.FFmpegError:
                self.failed += 1


def _location(source: str) -> tuple[str, str, str | None]:
    """Name and format of a source, as FFmpeg knows them."""
    if not source.startswith(CAMERA):
        return str(Path(source)), "r", None
    if sys.platform not in CAMERAS:
        raise VideoError(f"{source}: cameras can be read on {', '.join(CAMERAS)}, not on {sys.platform}")
    device, name = CAMERAS[sys.platform]
    return name.format(source.removeprefix(CAMERA)), "r", device


def _reason(source: str, error: Exception) -> str:
    if source.startswith(CAMERA):
        return f"there is no such camera, or it is in use ({error.strerror})"
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return "not a video that FFmpeg reads, or a damaged one"
    return error.strerror


class VideoWriter:
    """Writes frames with their overlay and a legend below; the file begins with the first frame.

    Drawing and encoding run in a thread of their own, while the network predicts the next frame.
    """

    def __init__(self, path: Path, rate: Fraction, classes: ClassTable, warning: str | None = None):
        self._path, self._rate, self._classes, self._warning = path, rate, classes, warning
        self._container = None
        self._thread = ThreadPoolExecutor(1)
        self._pending = None

    def write(self, frame: Frame, labels: np.ndarray) -> None:
        """Add a frame; waits until the one before is written, and raises what went wrong there."""
        self._wait()
        self._pending = self._thread.submit(self._encode, frame, labels)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_):
        """Complete the file, also after an error, so that it can be played as far as it goes."""
        try:
            self._wait()
        finally:
            self._thread.shutdown()
            if self._container is not None:
                self._container.mux(self._stream.encode())
                self._container.close()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _encode(self, frame: Frame, labels: np.ndarray) -> None:
        # H.264 stores colour for squares of four pixels: a last odd row or column is left out.
        height, width = (side // 2 * 2 for side in labels.shape)
        picture = blend(frame.image, labels, self._classes.palette)[:height, :width]
        if self._container is None:
            self._open(width, height)
        picture = np.concatenate([picture, self._legend.draw(labels)])
        encoded = av.VideoFrame.from_ndarray(picture, "rgb24")
        encoded.time_base = self._stream.codec_context.time_base
        encoded.pts = self._last = max(self._last + 1, round(frame.time / encoded.time_base))
        self._container.mux(self._stream.encode(encoded))

    def _open(self, width: int, height: int) -> None:
        self._legend = VideoLegend(self._classes, width, self._warning)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._path), "w", options={"movflags": "faststart"})
        self._stream = stream = self._container.add_stream("libx264", rate=self._rate, options=QUALITY)
        stream.width, stream.height, stream.pix_fmt = width, height + self._legend.height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)  # fine enough for the times of any source
        self._last = -1
