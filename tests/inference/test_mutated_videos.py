"""Videos that are damaged at random: only a `VideoError` comes out, and what is written can be played."""

import numpy as np
import pytest

from fasseg_jax.inference.video import VideoError, VideoReader, segment_video
from tests.helpers.mutation import outcomes
from tests.helpers.tiny import photo
from tests.helpers.videos import Thresholds, read, write

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".ts": "mpeg2video", ".webm": "libvpx", ".mov": "png"}
CODECS |= {".flv": "flv", ".wmv": "wmv2", ".mpg": "mpeg2video", ".nut": "ffv1", ".mxf": "mpeg2video", ".3gp": "mpeg4"}
CODECS |= {".y4m": "rawvideo", ".ogv": "libvpx"}
PIXELS = {"png": "rgb24", "ffv1": "bgr0"}


def count_frames(path):
    with VideoReader(str(path)) as reader:
        for frame in reader:
            assert frame.image.dtype == np.uint8 and frame.image.ndim == 3
        return len(reader.notes)


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize("count", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_mutated_videos(tmp_path, capfd, ending, count):
    path = tmp_path / f"video{ending}"
    write(
        path,
        [photo(32, 48, seed) for seed in range(4)],
        codec=CODECS[ending],
        pixels=PIXELS.get(CODECS[ending], "yuv420p"),
    )
    whole = path.read_bytes()
    assert len(read(path)[0]) == 4
    ends = outcomes(path, whole, count, lambda: count_frames(path), VideoError)
    assert ends.keys() == {"read", "VideoError"}
    assert sum(map(len, capfd.readouterr())) < 100_000


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".ts"])
@pytest.mark.parametrize("count", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_what_is_written_of_mutated_videos_can_be_played(tmp_path, ending, count):
    path = tmp_path / f"video{ending}"
    write(path, [photo(32, 48, seed) for seed in range(6)], codec=CODECS[ending])

    def segment():
        summary = segment_video(Thresholds(), str(path), tmp_path / "out")
        written, reader = read(summary.path)
        assert len(written) == summary.frames and reader.failed == 0

    ends = outcomes(path, path.read_bytes(), count, segment, VideoError)
    assert ends["read"] > 0
