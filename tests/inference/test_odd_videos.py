"""Videos that are unusual but right, and files that only look like videos."""

import os
import resource
import subprocess
import sys

import av
import numpy as np
import pytest
from av.format import ContainerFormat

from fasseg_jax.data.images import PHOTO_EXTENSIONS
from fasseg_jax.inference.video import VideoError, VideoReader, is_video, segment_video
from fasseg_jax.inference.video_reader import VIDEO_EXTENSIONS
from tests.helpers.tiny import photo
from tests.helpers.videos import Thresholds, read, write

# Wide by high; what H.264 stores is even, at least 2x2, above the legend.
SIZES = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 3), (1, 700), (700, 1), (5, 2), (17, 33)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ending", [".avi", ".mp4"])
def test_tiny_videos_are_segmented_and_can_be_played(tmp_path, size, ending):
    width, height = size
    images = [photo(height, width, seed) for seed in range(3)]
    codec = {"codec": "rawvideo", "pixels": "bgr24"} if ending == ".avi" else {"codec": "mpeg4"}
    source = write(tmp_path / f"video{ending}", images, **codec)
    given, _ = read(source)
    assert [frame.image.shape for frame in given] == [(height, width, 3)] * 3
    if ending == ".avi":
        np.testing.assert_array_equal(given[2].image, images[2])
    summary = segment_video(Thresholds(), source, tmp_path / "out", warning="untrained")
    written, _ = read(summary.path)
    assert summary.frames == len(written) == 3 and summary.lost == 0
    assert written[0].image.shape[1] == max(2, width // 2 * 2)
    assert written[0].image.shape[0] > max(2, height // 2 * 2)


def test_what_h264_cannot_hold_ends_in_one_line(tmp_path):
    source = write(tmp_path / "video.avi", [photo(2, 17_000)], codec="rawvideo", pixels="bgr24")
    with pytest.raises(OSError, match=r"video_overlay.mp4: FFmpeg cannot write H.264 of 17000x\d+ pixels") as error:
        segment_video(Thresholds(), source, tmp_path / "out")
    assert "\n" not in str(error.value) and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "name", ["a:b.mp4", "10:30.mp4", "http:x.mp4", "concat:a|b.mp4", "100%.mp4", "a%03d.mp4", "-x.mp4", "ü 'b'.mp4"]
)
@pytest.mark.parametrize("relative", [False, True])
def test_names_that_ffmpeg_would_take_for_something_else(tmp_path, monkeypatch, name, relative):
    write(tmp_path / name, [photo(16, 16)] * 2)
    monkeypatch.chdir(tmp_path)
    summary = segment_video(Thresholds(), name if relative else str(tmp_path / name), tmp_path / "out:1")
    assert summary.path == tmp_path / "out:1" / name.replace(".mp4", "_overlay.mp4") and summary.path.is_file()
    assert summary.frames == len(read(summary.path)[0]) == 2


@pytest.mark.parametrize("ending", [".avi", ".mp4", ".mkv"])
@pytest.mark.parametrize("tag", [b"Caf\xe9XYZ", b"\xff\xfe\x80\x81\xc3(", b"\x8a\x82\xb5\x82\xed\x82\xa2\x00"])
def test_tags_that_are_not_utf8(tmp_path, ending, tag):
    """Tags of the container and of its streams, in the encodings of old programs."""
    path = tmp_path / f"video{ending}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLEXYZ"
        stream = container.add_stream("mpeg4", rate=25)
        stream.metadata["title"] = stream.metadata["handler_name"] = "STREAMXY"
        stream.height = stream.width = 32
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photo(32, 32), "rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"TITLEXYZ" in data and b"STREAMXY" in data
    path.write_bytes(data.replace(b"TITLEXYZ", tag.ljust(8, b"\0")).replace(b"STREAMXY", tag.ljust(8, b"\0")))
    assert len(read(path)[0]) == 3


def test_endings_are_those_of_ffmpeg():
    """Every ending belongs to a format that FFmpeg reads or writes by that name, and to no photo."""
    named = set()
    for name in av.formats_available:
        for mode in "rw":
            try:
                named |= ContainerFormat(name, mode).extensions
            except ValueError:  # the format has no such mode
                continue
    assert {f".{ending}" for ending in named} >= VIDEO_EXTENSIONS
    assert not VIDEO_EXTENSIONS & PHOTO_EXTENSIONS


ENDINGS = ("mpg mpeg vob mxf", "wmv asf", "flv", "3gp 3g2 m2ts mts ts mov m4v mkv nut avi", "f4v mp4", "ogv webm")
CODECS = ("mpeg2video", "wmv2", "flv", "mpeg4", "libx264", "libvpx")


@pytest.mark.parametrize(
    ("ending", "codec"),
    [(ending, codec) for endings, codec in zip(ENDINGS, CODECS, strict=True) for ending in endings.split()],
)
def test_videos_of_many_formats(tmp_path, ending, codec):
    path = tmp_path / f"VIDEO.{ending.upper()}"
    write(tmp_path / f"video.{ending}", [photo(48, 64)] * 5, codec=codec)
    (tmp_path / f"video.{ending}").rename(path)
    assert is_video(str(path))
    given, _ = read(path)
    assert len(given) == 5
    assert np.abs(given[0].image.astype(int) - photo(48, 64)).mean() < 20


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("camera:0", True),
        ("a/video.MP4", True),
        ("x.webm", True),
        ("10:30.mpg", True),
        ("photo.jpg", False),
        ("animated.gif", False),
        ("animated.webp", False),
        ("photo.avif", False),
        ("photos", False),
        ("playlist.m3u8", False),
    ],
)
def test_inputs_are_told_apart(source, expected):
    assert is_video(source) == expected


def test_pipes_devices_and_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /dev/null\n")
    (tmp_path / "near.mp4").write_text("ffconcat version 1.0\nfile video.mp4\n")
    write(tmp_path / "video.mp4", [photo(16, 16)] * 2)
    cases = {
        "pipe.mp4": "is a pipe or a device",
        "device.mp4": "is a pipe or a device",
        "folder.mp4": "Is a directory",
        "list.mp4": "is a list of videos, not a video",
        "near.mp4": "is a list of videos, not a video",
        "x" * 300 + ".mp4": "File name too long",
    }
    for name, message in cases.items():
        with pytest.raises(VideoError, match=message) as error:
            VideoReader(str(tmp_path / name))
        assert name in str(error.value) and "\n" not in str(error.value)


def test_of_several_streams_that_of_players_is_taken(tmp_path):
    """Cover pictures and thumbnails are streams of one frame, and may come first; the file marks the video."""
    images = [photo(48, 64, seed) for seed in range(6)]
    with av.open(str(tmp_path / "video.mov"), "w") as container:
        still, stream = (container.add_stream("png", rate=25) for _ in range(2))
        stream.disposition = av.stream.Disposition.default
        still.height, still.width, still.pix_fmt = 20, 30, "rgb24"
        stream.height, stream.width, stream.pix_fmt = 48, 64, "rgb24"
        container.mux(still.encode(av.VideoFrame.from_ndarray(photo(20, 30), "rgb24")))
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(still.encode())
        container.mux(stream.encode())
    with av.open(str(tmp_path / "video.mov")) as container:
        assert container.streams.video[0].width == 30
    given, _ = read(tmp_path / "video.mov")
    assert len(given) == 6
    for frame, image in zip(given, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)


def test_a_name_that_is_no_utf8(tmp_path):
    """Old archives unpack such names; programs print them with the byte's number."""
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    write(tmp_path / "video.mp4", [photo(16, 16)] * 2)
    (tmp_path / "video.mp4").rename(path)
    summary = segment_video(Thresholds(), str(path), tmp_path)
    assert os.fsencode(summary.path.name) == b"caf\xe9_overlay.mp4"
    assert summary.frames == len(read(summary.path)[0]) == 2
    command = "import sys; from absl import flags; from fasseg_jax.runtime.command_line import parse_flags, print_error"
    command += "; parse_flags(['p']); print(sys.argv[1]); print_error(sys.argv[1], 0)"
    environment = {**os.environ, "PYTHONUTF8": "1"}
    ran = subprocess.run([sys.executable, "-c", command, path.name], capture_output=True, check=True, env=environment)
    assert ran.stdout == b"caf\\udce9.mp4\n" and b"caf\\udce9.mp4" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("space", [0, 30, 100, 5000, 20_000, 60_000, 100_000])
def test_a_full_disk_ends_in_one_line(tmp_path, space):
    """The header, a frame or the end cannot be written; FFmpeg crashed when it was asked to go on."""
    source = write(tmp_path / "video.mp4", [photo(200, 300, seed) for seed in range(60)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/video_overlay.mp4'") as error:
            segment_video(Thresholds(), source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value) and "file:" not in str(error.value)
