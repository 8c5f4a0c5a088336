"""The frames of a video file or a camera, as a player shows them (PyAV)."""

import dataclasses
import errno
import sys
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from fasseg_jax.data.images import MAX_PIXELS
from fasseg_jax.inference.video_display import Orientation, VideoClock, nearest_orientation, square_pixels
from fasseg_jax.runtime.files import Path, require_regular_file

__all__ = ["CAMERA", "VIDEO_EXTENSIONS", "Frame", "VideoError", "VideoReader", "is_video", "local_url"]

try:
    import av
    from av.sidedata.sidedata import SideDataContainer
    from av.video.reformatter import VideoReformatter
except ImportError:
    av = None  # type: ignore[assignment]  # an optional extra; `VideoReader` asks for it

# By which FFmpeg calls the formats of videos. Animated GIF, PNG and WebP files are photos: their first frame counts.
FORMATS = (
    "264 265 266 3g2 3gp amv asf avc avi avs2 avs3 cavs dif dv dvd f4v flv gxf h261 h263 h264 h265 h266 hevc ism ismv "
    "ivf m1v m2t m2ts m2v m4v mjpeg mjpg mk3d mkv mov mp4 mpeg mpg mts mxf nut obu ogg ogv psp rm roq swf ts ty vc1 "
    "viv vob vvc webm wmv wtv y4m"
)
VIDEO_EXTENSIONS = frozenset(f".{name}" for name in FORMATS.split())
CAMERA = "camera:"  # prefix of a camera's number, or on Windows of its name
# By platform, FFmpeg's input device and how it names a camera.
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "video={}")}
PLAYLISTS = ("concat", "dash", "hls", "imf", "sdp", "rtsp")  # formats that name other files or addresses
PLAYLIST = "is a list of videos, not a video; give one of them"
DEFAULT_RATE = Fraction(25)
RATES = Fraction(1, 3600), Fraction(1000)  # slowest and fastest that a file may state; others are mistakes


class VideoError(ValueError):
    """A video or camera cannot be read; the message names it and the reason."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of a video.

    Attributes:
      image: RGB, upright, of square pixels.
      time: seconds since the first frame; each is later than the one before.
    """

    image: UInt8[np.ndarray, "H W 3"]
    time: Fraction


def is_video(source: str) -> bool:
    """Whether an input is a camera ("camera:0") or, by its extension, a video."""
    return source.startswith(CAMERA) or Path(source).suffix.lower() in VIDEO_EXTENSIONS


def local_url(path: Path) -> str:
    """FFmpeg's name of a file. Without the prefix, FFmpeg takes "10:30.mp4" for something of a protocol "10"."""
    return f"file:{path}"


class VideoReader:
    """The frames of a video or camera, in order, all in the size of the first.

    Attributes:
      rate: average frames per second, as the file states it.
      announced: number of frames, as the file states it; None if it does not.
      reached: number of the announced frames up to the last one read. An AVI file counts a frame several times that is
        shown for longer.
      failed: how often decoding has failed so far.
      damaged: number of frames so far of which the decoder had to fill in a part.
    """

    def __init__(self, source: str):
        """Open a video file or "camera:0"; raises `VideoError`."""
        if av is None:
            raise VideoError('videos and cameras need PyAV: pip install "fasseg_jax[video]"')
        name, device = _ffmpeg_input(source)
        try:
            # Old files hold tags in other encodings than UTF-8; nothing here reads them.
            self._container = av.open(name, "r", device, metadata_errors="replace")
        except (av.error.FFmpegError, UnicodeError) as error:
            raise VideoError(f"{source}: {_reason(source, error)}") from error
        if self._container.format.name in PLAYLISTS:
            self._container.close()
            raise VideoError(f"{source}: {PLAYLIST}")
        if not self._container.streams.video:
            held = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            self._container.close()
            raise VideoError(f"{source}: holds no video, only {held}")
        # The one that players choose: not the picture of a cover, which may come first.
        stream = self._container.streams.best("video") or self._container.streams.video[0]
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        stream.thread_type = "NONE"  # with threads the decoder does not report all damaged frames
        self._converter = VideoReformatter()  # each has threads, so not one for every frame
        stated = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
        self.rate = next((rate for rate in stated if RATES[0] <= rate <= RATES[1]), DEFAULT_RATE)
        self.announced = stream.frames or None
        self.failed = self.damaged = self.reached = 0
        self._source = source
        self._aspect = stream.sample_aspect_ratio
        self._clock = VideoClock(self.rate)
        self._odd_aspect = self._odd_matrix = False
        self._other_sizes = 0
        self._is_avi = self._container.format.name == "avi"
        self._last_stamp, self._longest = -1, 1  # of an AVI file, whose stamps count frames

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file left open in the frames so far and how it was decided, a sentence each."""
        notes = []
        if self._odd_matrix:
            notes.append("The file turns frames by an angle that is no quarter turn; the nearest one is taken.")
        if self._odd_aspect:
            notes.append(f"The file states impossible proportions of a pixel ({self._aspect}); square ones are taken.")
        if self._other_sizes:
            notes.append(f"{self._other_sizes} frames have another size than the first, and are scaled to it.")
        if self._clock.corrected:
            notes.append(
                f"{self._clock.corrected} frames have no time stamp, or none that follows the one before; "
                f"they follow at {float(self.rate):.4g} frames per second."
            )
        return tuple(notes)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """Decode; a frame that cannot be decoded is counted in `failed` and left out.

        Raises:
          VideoError: a frame has more than `MAX_PIXELS`.
        """
        first = None  # size of the first frame, as shown
        for frame in self._decoded():
            orientation = self._orientation(frame)
            (height, width), possible = square_pixels(frame.height, frame.width, self._aspect)
            self._odd_aspect |= not possible
            if height * width > MAX_PIXELS:
                raise VideoError(f"{self._source}: frames of more than {MAX_PIXELS // 10**6} million pixels")
            shown = (width, height) if orientation.transposed else (height, width)
            size = first or shown
            try:
                image = self._rgb(frame, size[::-1] if orientation.transposed else size)
            except (av.error.FFmpegError, ValueError):  # a kind of pixels that FFmpeg does not convert
                self.failed += 1
                continue
            self.damaged += frame.is_corrupt
            self._other_sizes += shown != size
            first = size
            stamp = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
            self._count(frame.pts)
            yield Frame(np.ascontiguousarray(orientation.apply(image)), self._clock.tick(stamp))

    def _count(self, stamp: int | None) -> None:
        self.reached += 1
        if self._is_avi and stamp is not None:
            self._longest = max(self._longest, stamp - self._last_stamp)
            self._last_stamp = stamp
            self.reached = max(self.reached, stamp + self._longest)

    def _orientation(self, frame: "av.VideoFrame") -> Orientation:
        """How a player turns and mirrors the frame: phones store videos on their side, front cameras mirrored."""
        # Not `frame.side_data`: it refers to the frame and the frame to it, so that the pixels of all frames would stay
        # in memory until Python looks for garbage, gigabytes of a large video.
        side_data = SideDataContainer(frame)  # type: ignore[call-arg]  # which PyAV's stub does not list
        if "DISPLAYMATRIX" not in {data.type.name for data in side_data}:
            return Orientation()
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)
        orientation, exact = nearest_orientation(matrix.tolist())
        self._odd_matrix |= not exact
        return orientation

    def _rgb(self, frame: "av.VideoFrame", size: tuple[int, int]) -> np.ndarray:
        """A frame as it is stored, but RGB and scaled to the size (H, W)."""
        height, width = size
        return self._converter.reformat(frame, width, height, "rgb24").to_ndarray()

    def _decoded(self) -> Iterator["av.VideoFrame"]:
        packets = self._container.demux(self._stream)
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
        try:
            require_regular_file(Path(source))
        except OSError as error:
            raise VideoError(f"{source}: {error.strerror}") from error
        return local_url(Path(source)), None
    if sys.platform not in CAMERAS:
        raise VideoError(f"{source}: cameras can be read on {', '.join(CAMERAS)}, not on {sys.platform}")
    device, name = CAMERAS[sys.platform]
    return name.format(source.removeprefix(CAMERA)), device


def _reason(source: str, error: Exception) -> str:
    if isinstance(error, UnicodeError):
        return "FFmpeg needs a name in UTF-8; rename the file"
    if source.startswith(CAMERA):
        return f"there is no such camera, or another program uses it ({getattr(error, 'strerror', error)})"
    if isinstance(error, OSError) and error.errno == errno.EPERM:  # FFmpeg's word for lists that name absolute paths
        return PLAYLIST
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError | av.error.ArgumentError):
        return "not a video that FFmpeg reads, or a damaged one"
    return str(getattr(error, "strerror", error))
