"""Videos of a few generated frames, written and read back."""

import gc
import json
import os
import re
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference import video, video_reader
from fasseg_jax.inference.explain import explain
from fasseg_jax.inference.explanation_page import draw_explanation
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.video import VideoError, VideoReader, segment_video
from fasseg_jax.runtime.garbage import paused_garbage_collection
from fasseg_jax.visualization.legend import VideoLegend
from fasseg_jax.visualization.overlay import blend
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.helpers.tiny import photo, tiny_model
from tests.helpers.videos import Thresholds, read, write
from tests.inference.test_predict import MANY_RUNS, run

CLASSES = load_classes("cityscapes")


def frames(count=10, size=(96, 128)):
    """Soft patches that wander to the right."""
    return [np.roll(photo(*size), 6 * index, axis=1) for index in range(count)]


def video_errors(source, written, label):
    """For each frame of a video with overlay: mean error of its colors, their 99th percentile, the legend's mean."""
    legend = VideoLegend(CLASSES, 128)
    given, written = read(source)[0], read(written)[0]
    for before, after in zip(given, written, strict=True):
        assert after.time == before.time
        labels = label(before.image)
        expected = blend(before.image, labels, CLASSES.palette)
        assert after.image.shape == (96 + legend.height, 128, 3)
        # H.264 stores color at half the resolution: compare where colors do not change within a few pixels.
        changes = np.abs(np.diff(labels.astype(int), axis=0, prepend=labels[:1])) > 0
        changes |= np.abs(np.diff(labels.astype(int), axis=1, prepend=labels[:, :1])) > 0
        near = np.zeros_like(changes)
        for y, x in zip(*np.nonzero(changes), strict=True):
            near[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = True
        assert (~near).sum() > 500
        error = np.abs(after.image[:96].astype(int) - expected)[~near]
        yield error.mean(), np.quantile(error, 0.99), np.abs(after.image[96:].astype(int) - legend.draw(labels)).mean()


def test_a_video_gets_its_overlay(tmp_path, monkeypatch):
    """Number, times, size and colors of the frames."""
    monkeypatch.setitem(video.QUALITY, "crf", "1")  # so that errors are those of rounding
    source = write(tmp_path / "video.mp4", frames())
    segmenter = Thresholds()
    segmenter.label = lambda image: (photo(*image.shape[:2], seed=7)[..., 0] // 60 + 3).astype(np.uint8)
    summary = segment_video(segmenter, source, tmp_path / "out", batch_size=2)
    assert summary.path == tmp_path / "out/video_overlay.mp4"
    assert (summary.frames, summary.lost, summary.damaged, summary.stopped) == (10, 0, 0, False)
    with av.open(str(summary.path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert stream.frames == 10 and stream.duration * stream.time_base == Fraction(10, 25)
    for mean, most, legend in video_errors(source, summary.path, segmenter.label):
        assert mean < 2.5 and most < 9 and legend < 2.5


def test_answers_in_any_order_keep_the_order_of_the_video(tmp_path):
    """Frames at uneven times."""
    times = [0, 40, 90, 500, 505, 520, 1000]
    images = [np.full((64, 80, 3), (28 * index + 21, 90, 90), np.uint8) for index in range(7)]
    source = write(tmp_path / "video.mkv", images, times)
    segmenter = Thresholds()
    summary = segment_video(segmenter, source, tmp_path)
    written, _ = read(summary.path)
    assert summary.frames == 7 and segmenter.sizes == {(64, 80, 3)}
    assert [round(1000 * frame.time) for frame in written] == times
    for index, frame in enumerate(written):
        color = frame.image[10:50, 10:70].reshape(-1, 3).mean(0)
        expected = 0.45 * np.array([28 * index + 21, 90, 90]) + 0.55 * CLASSES.palette[2 * index + 1]
        np.testing.assert_allclose(color, expected, atol=8)


def test_odd_sizes_lose_a_row_and_a_column(tmp_path):
    images = [photo(65, 83) for _ in range(2)]
    with av.open(str(tmp_path / "odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 65, 83, "bgr0"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    given, reader = read(tmp_path / "odd.mkv")
    np.testing.assert_array_equal(given[1].image, images[1])  # a lossless video
    assert reader.rate == 10
    written, _ = read(segment_video(Thresholds(), str(tmp_path / "odd.mkv"), tmp_path).path)
    assert written[0].image.shape == (64 + VideoLegend(CLASSES, 82).height, 82, 3)


def test_damaged_videos_are_read_as_far_as_they_go(tmp_path):
    source = Path(write(tmp_path / "video.mp4", frames(24)))
    data = source.read_bytes()
    (tmp_path / "short.mp4").write_bytes(data[: len(data) * 6 // 10])
    summary = segment_video(Thresholds(), str(tmp_path / "short.mp4"), tmp_path)
    assert 0 < summary.frames < 24 and summary.frames + summary.lost == 24
    assert len(read(summary.path)[0]) == summary.frames
    holes = bytearray(data)
    holes[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    (tmp_path / "holes.mp4").write_bytes(holes)
    summary = segment_video(Thresholds(), str(tmp_path / "holes.mp4"), tmp_path)
    assert summary.frames + summary.lost == 24
    assert summary.lost + summary.damaged > 0
    assert len(read(summary.path)[0]) == summary.frames


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted as Linux counts them")
def test_frames_and_threads_are_gone_with_the_last_use(tmp_path):
    """Without a search for garbage; FFmpeg's threads are in no list of Python's."""
    source = write(tmp_path / "video.mp4", frames(30))
    segment_video(Thresholds(), source, tmp_path / "out")  # also loads what stays
    gc.collect()
    with paused_garbage_collection():
        before = len(os.listdir("/proc/self/task"))
        with VideoReader(source) as reader:
            for _, frame in zip(range(20), reader, strict=False):
                assert frame.image.shape == (96, 128, 3)
                # As decoded, as RGB, and the one that the decoder fills next.
                assert sum(isinstance(thing, av.VideoFrame) for thing in gc.get_objects()) <= 3
            while_reading = len(os.listdir("/proc/self/task"))
        del reader, frame
        summary = segment_video(Thresholds(), source, tmp_path / "out")
        after = len(os.listdir("/proc/self/task"))
    assert summary.frames == 30
    assert while_reading - before <= os.cpu_count() + 1 and after - before <= 1


def test_what_is_no_video_is_refused(tmp_path, monkeypatch):
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    (tmp_path / "empty.mp4").touch()
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    data = Path(write(tmp_path / "none.mp4", frames(3))).read_bytes()
    pictures = data.index(b"mdat") + 4
    (tmp_path / "none.mp4").write_bytes(data[:pictures] + bytes(len(data) - pictures))
    cases = {
        "text.mp4": "text.mp4: not a video that FFmpeg reads",
        "empty.mp4": "empty.mp4: not a video that FFmpeg reads",
        "absent.mp4": "absent.mp4: No such file",
        "sound.mkv": "sound.mkv: holds no video, only audio",
        "none.mp4": "none.mp4: no frame could be decoded",
        "camera:77": "camera:77: there is no such camera",
    }
    before = sorted(tmp_path.iterdir())
    for name, message in cases.items():
        source = name if name.startswith("camera:") else str(tmp_path / name)
        with pytest.raises(VideoError, match=message):
            segment_video(Thresholds(), source, tmp_path)
    assert sorted(tmp_path.iterdir()) == before  # nothing half done is left
    monkeypatch.setattr(video_reader, "av", None)
    with pytest.raises(VideoError, match=r'pip install "fasseg_jax\[video\]"'):
        VideoReader("video.mp4")


def test_a_camera_runs_until_it_is_stopped(tmp_path, monkeypatch):
    """FFmpeg's endless test picture in place of a camera."""
    monkeypatch.setitem(video_reader.CAMERAS, sys.platform, ("lavfi", "testsrc=size=64x48:rate=20:duration={}"))
    asked = []

    def stopped():
        asked.append(1)
        return len(asked) > 6

    summary = segment_video(Thresholds(), "camera:1000", tmp_path, stopped=stopped, warning="untrained")
    assert summary.path.name == "camera1000_overlay.mp4"
    assert summary.stopped and summary.frames == 6 and summary.lost == 0
    written, _ = read(summary.path)
    assert [frame.time for frame in written] == [Fraction(index, 20) for index in range(6)]


def test_a_network_gone_wrong_names_the_frame(tmp_path):
    class Broken(Thresholds):
        def segment_all(self, photos, batch_size=1):
            yield next((key, self.label(image)) for key, image in photos)
            raise FloatingPointError("1: the network's output is not finite")

    source = write(tmp_path / "video.mp4", frames(3))
    with pytest.raises(FloatingPointError, match="frame 1: the network"):
        segment_video(Broken(), source, tmp_path)


def test_colors_and_places_in_the_legend_stay():
    legend = VideoLegend(CLASSES, 400)  # two columns of two rows
    halves = lambda *ids: np.repeat(np.array(ids, np.uint8), 100)[None].repeat(40, 0)
    places = []
    for labels in (halves(3, 5), halves(5, 3), halves(5, 7), halves(1, 2, 5), halves(9)):
        strip = legend.draw(labels)
        assert strip.shape == (legend.height, 400, 3)
        found = {}
        for class_id in range(len(CLASSES)):
            y, x = np.nonzero((strip == CLASSES.palette[class_id]).all(-1))
            if len(y) > 20:
                found[class_id] = (round(y.mean() / legend.height), round(x.mean() / 400))
        places.append(found)
    # 3 and 5 stay where they are, whichever is larger; when there is no room 3 or 7, which are gone, give way.
    assert places[0].keys() == {3, 5} and places[1] == places[0]
    assert places[2].keys() == {5, 7} and places[2][5] == places[0][5] and places[2][7] not in places[0].values()
    assert places[3].keys() == {1, 2, 5} and places[3][5] == places[0][5]
    assert places[4].keys() == {9}


@pytest.mark.slow
def test_predict_takes_videos_and_explains_photos(tmp_path):
    """predict.py as a user calls it."""
    save_checkpoint(tmp_path / "model", *tiny_model(), CLASSES)
    data = Path(write(tmp_path / "video.mp4", frames())).read_bytes()
    (tmp_path / "short.mp4").write_bytes(data[: len(data) * 6 // 10])
    (tmp_path / "text.mp4").write_text("not a video")
    Image.fromarray(photo(64, 96)).save(tmp_path / "photo.png")
    Image.fromarray(photo(64, 96)).save(tmp_path / "10:30.jpg")
    write(tmp_path / "9:1.avi", [photo(1, 1)] * 2, codec="rawvideo", pixels="bgr24")
    os.mkfifo(tmp_path / "pipe.mp4")
    cases = [  # arguments, exit status, what the error says
        (["--input=video.mp4"], 0, ""),
        (["--input=short.mp4"], 1, "short.mp4: .* frames could not be decoded and are left out"),
        (["--input=text.mp4"], 1, "text.mp4: not a video that FFmpeg reads"),
        (["--input=9:1.avi"], 0, ""),
        (["--input=10:30.jpg"], 0, ""),
        (["--input=pipe.mp4"], 2, "is a pipe or a device, not a file: 'pipe.mp4'"),
        (["--input=camera:77"], 1, "camera:77: there is no such camera"),
        (["--input=absent.mp4"], 2, "absent.mp4: there is no such file"),
        (["--input=video.mp4", "--scores"], 2, "--scores, --explain and --write_labels are for photos"),
        (["--input=video.mp4", "--explain"], 2, "--scores, --explain and --write_labels are for photos"),
        (["--input=photo.png", "--explain", "--multi_scale"], 2, "--explain shows a prediction from a single view"),
        (["--input=photo.png", "--explain"], 0, ""),
    ]
    model = ["--device=cpu", "--checkpoint=model", "--output=out"]
    result = run(
        [sys.executable, "-c", MANY_RUNS], tmp_path, input=json.dumps([model + arguments for arguments, *_ in cases])
    )
    assert result.returncode == 0, result.stderr
    for (arguments, status, message), (found, errors) in zip(cases, json.loads(result.stdout), strict=True):
        assert found == status, (arguments, errors)
        errors = [line for line in errors.splitlines() if line.startswith("-c: ")]
        assert len(errors) == bool(message)
        assert re.search(message, "".join(errors)), arguments
    assert {path.name for path in (tmp_path / "out").glob("photo*")} == {
        "photo_labels.png",
        "photo_overlay.png",
        "photo_explanation.png",
    }
    assert (tmp_path / "out/10:30_overlay.png").exists() and len(read(tmp_path / "out/9:1_overlay.mp4")[0]) == 2
    segmenter = Segmenter(*tiny_model(), CLASSES)
    videos = str(tmp_path / "video.mp4"), tmp_path / "out/video_overlay.mp4"
    errors = list(video_errors(*videos, lambda image: segmenter(image).labels))
    assert len(errors) == 10
    for mean, most, _ in errors:  # with the losses that videos have
        assert mean < 5 and most < 25
    # The page is that of the photo and its labels.
    image, labels = photo(64, 96), np.asarray(Image.open(tmp_path / "out/photo_labels.png"))
    page = draw_explanation(explain(segmenter, image, labels), image, labels, CLASSES, "photo")
    written = np.asarray(Image.open(tmp_path / "out/photo_explanation.png")).astype(int)
    assert np.abs(written - np.asarray(page)).max() <= 1
