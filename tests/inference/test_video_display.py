"""What a player shows of a video is what is segmented and written: turned, mirrored, in its proportions, in time."""

from fractions import Fraction

import numpy as np
import pytest

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference.predict import PredictionOptions, segment_camera_or_video
from fasseg_jax.inference.video import segment_video
from fasseg_jax.inference.video_display import Orientation, VideoClock, nearest_orientation, square_pixels
from fasseg_jax.visualization.overlay import blend
from tests.helpers.tiny import photo
from tests.helpers.videos import Thresholds, read, write, write_lossless

ONE = 1 << 16
# By a, b, c, d of the display matrix: the stored pixel (x, y) is shown at (a x + c y, b x + d y).
ORIENTATIONS = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): np.fliplr,
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, -1, 0): lambda image: np.rot90(image, 2).swapaxes(0, 1),
    (0, -1, 1, 0): np.rot90,
}


def turned(a, b, c, d, scale=ONE):
    return lambda stream: stream.set_display_matrix([a * scale, b * scale, 0, c * scale, d * scale, 0, 0, 0, 1 << 30])


def picture(height=48, width=64):
    """Every pixel differs from every other."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 4 * y, 255 - 2 * x - 2 * y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("matrix", ORIENTATIONS)
@pytest.mark.parametrize("scale", [ONE, 3 * ONE // 4])
def test_all_eight_orientations(tmp_path, matrix, scale):
    given, reader = read(write_lossless(tmp_path / "video.mov", [picture()] * 2, display=turned(*matrix, scale)))
    for frame in given:
        np.testing.assert_array_equal(frame.image, ORIENTATIONS[matrix](picture()))
    assert reader.notes == () and len(given) == 2


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("mirrored", [False, True])
def test_videos_of_phones(tmp_path, rotation, mirrored):
    """PyAV's own words for the matrix: counter-clockwise, then mirrored."""
    path = tmp_path / "video.mp4"
    given, _ = read(
        write(path, [picture()] * 2, display=lambda stream: stream.set_display_rotation(rotation, mirrored))
    )
    expected = np.rot90(picture(), rotation // 90)
    expected = np.fliplr(expected) if mirrored else expected
    assert given[0].image.shape == expected.shape
    assert np.abs(given[0].image.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_the_written_overlay_is_turned(tmp_path, matrix):
    source = write_lossless(tmp_path / "video.mov", [picture()] * 2, display=turned(*matrix))
    segmenter = Thresholds()
    segmenter.label = lambda image: np.full(image.shape[:2], 3, np.uint8)
    written, _ = read(segment_video(segmenter, source, tmp_path / "out").path)
    image = ORIENTATIONS[matrix](picture())
    expected = blend(image, segmenter.label(image), load_classes("cityscapes").palette).astype(int)
    height, width = image.shape[:2]
    assert written[0].image.shape[1] == width
    assert np.abs(written[0].image[:height] - expected).mean() < 3
    assert np.abs(written[0].image[:height] - np.rot90(expected, 2)).mean() > 20


@pytest.mark.parametrize(("rotation", "turns"), [(3, 0), (40, 0), (50, 1), (100, 1), (-80, -1), (170, 2)])
def test_other_angles_are_taken_as_the_nearest_quarter_turn(tmp_path, rotation, turns):
    source = write_lossless(
        tmp_path / "video.mov", [picture()], display=lambda stream: stream.set_display_rotation(rotation)
    )
    given, reader = read(source)
    np.testing.assert_array_equal(given[0].image, np.rot90(picture(), turns))
    assert reader.notes == ("The file turns frames by an angle that is no quarter turn; the nearest one is taken.",)


def test_damaged_matrices():
    assert nearest_orientation([0] * 9) == (Orientation(), False)
    assert nearest_orientation([-(2**31)] * 9)[1] is False


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        ("16/15", (48, 68)),
        ("4/3", (48, 85)),
        ("32/27", (48, 76)),
        ("2", (48, 128)),
        ("8/9", (54, 64)),
        ("10/11", (53, 64)),
        ("1/2", (96, 64)),
        ("1", (48, 64)),
        ("1280/1281", (48, 64)),
    ],
)
@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0)])
def test_pixels_that_are_not_square(tmp_path, aspect, size, matrix):
    """A disk looks like an ellipse as stored; what is segmented is a disk, also if the video is turned as well."""
    height, width = size
    y, x = np.mgrid[:48, :64]
    disk = (((x - 31.5) * width / 64) ** 2 + ((y - 23.5) * height / 48) ** 2 < 18**2)[..., None] * np.uint8(200)
    source = write(tmp_path / "video.mp4", [disk.repeat(3, -1)] * 2, aspect=Fraction(aspect), display=turned(*matrix))
    given, reader = read(source)
    assert given[0].image.shape[:2] == (size if matrix[0] else size[::-1])
    inside = np.argwhere(given[0].image[..., 0] > 100)
    radii = np.ptp(inside, axis=0) / 2
    assert np.abs(radii - 17.5).max() < 1.5
    assert reader.notes == ()
    written, _ = read(segment_video(Thresholds(), source, tmp_path / "out").path)
    assert written[0].image.shape[1] == given[0].image.shape[1] // 2 * 2


def test_known_formats_and_impossible_proportions(tmp_path):
    assert square_pixels(576, 720, Fraction(64, 45)) == ((576, 1024), True)  # PAL, 16:9
    assert square_pixels(480, 720, Fraction(8, 9)) == ((540, 720), True)  # NTSC, 4:3
    assert square_pixels(1080, 1440, Fraction(4, 3)) == ((1080, 1920), True)  # HDV
    assert square_pixels(1080, 1920, None) == ((1080, 1920), True)
    assert square_pixels(3, 5, Fraction(-2)) == ((3, 5), False)
    given, reader = read(write(tmp_path / "video.mp4", [picture()], aspect=Fraction(30)))
    assert given[0].image.shape == (48, 64, 3)
    assert reader.notes == ("The file states impossible proportions of a pixel (30); square ones are taken.",)


@pytest.mark.parametrize(
    ("stamps", "times", "corrected"),
    [
        ([0, 40, 80], [0, 40, 80], 0),
        ([-500, -460, -400], [0, 40, 100], 0),
        ([7, 8, 5000], [0, 1, 4993], 0),
        ([None, None, None], [0, 100, 200], 2),
        ([None, 900, 940], [0, 100, 140], 1),
        ([0, None, 300, 340], [0, 100, 300, 340], 1),
        ([5, 5, 5, 45], [0, 100, 200, 240], 2),
        ([1000, 1040, 0, 40], [0, 40, 140, 180], 1),
        ([0, 40, 10**12, 10**12 + 40], [0, 40, 140, 180], 1),
        ([0, 40, -(10**12), 40 - 10**12], [0, 40, 140, 180], 1),
    ],
)
def test_times_ascend_whatever_the_stamps_are(stamps, times, corrected):
    clock = VideoClock(Fraction(10))
    found = [clock.tick(None if stamp is None else Fraction(stamp, 1000)) for stamp in stamps]
    assert [1000 * time for time in found] == times and clock.corrected == corrected


def frames(count=8):
    return [np.roll(photo(48, 64), 6 * index, axis=1) for index in range(count)]


def assert_written_in_order(path, folder, count):
    """All frames are written, in their order, in a film that can be played from end to end."""
    given, _ = read(path)
    summary = segment_video(Thresholds(), str(path), folder)
    written, _ = read(summary.path)
    assert (summary.frames, summary.lost, len(given), len(written)) == (count, 0, count, count)
    times = [frame.time for frame in written]
    assert times == sorted(set(times)) and times[0] == 0
    assert np.abs(np.array(times) - [frame.time for frame in given]).max() < 1e-4
    return times, summary.notes


@pytest.mark.parametrize(
    ("stamps", "corrected"),
    [
        ([-500, -460, -420, -380, -340, -300, -260, -220], 0),
        ([0] * 8, 7),
        ([0, 40, 40, 80, 80, 120, 160, 200], 2),
        ([0, 40, 10**10, 10**10 + 40, 10**10 + 80, 10**10 + 120, 10**10 + 160, 10**10 + 200], 1),
    ],
)
def test_odd_stamps_in_a_file(tmp_path, stamps, corrected):
    source = tmp_path / "video.mkv"
    write(source, frames(), stamps, "ffv1", "bgr0", 10)
    times, notes = assert_written_in_order(source, tmp_path / "out", 8)
    assert times[-1] < 1
    assert (f"{corrected} frames have no time stamp" in " ".join(notes)) == bool(corrected)


def test_stamps_that_go_back(tmp_path):
    """Recordings of several parts begin again in the middle."""
    write(tmp_path / "part.ts", frames())
    (tmp_path / "video.ts").write_bytes((tmp_path / "part.ts").read_bytes() * 3)
    times, _ = assert_written_in_order(tmp_path / "video.ts", tmp_path / "out", 24)
    assert times[-1] < 2


def test_a_video_without_stamps(tmp_path):
    write(tmp_path / "video.h264", frames())
    times, _ = assert_written_in_order(tmp_path / "video.h264", tmp_path / "out", 8)
    assert times[-1] < 1


def test_frames_of_another_size_are_scaled_and_that_is_said(tmp_path, capsys):
    """Recordings of calls and broadcasts change their size in the middle."""
    write(tmp_path / "small.h264", [photo(48, 64)] * 3)
    write(tmp_path / "large.h264", [photo(96, 128)] * 4)
    source = tmp_path / "video.h264"
    source.write_bytes((tmp_path / "small.h264").read_bytes() + (tmp_path / "large.h264").read_bytes())
    given, _ = read(source)
    assert len(given) == 7
    for frame in given:
        assert frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.astype(int) - photo(48, 64)).mean() < 8
    summary = segment_camera_or_video(Thresholds(), str(source), PredictionOptions(output=tmp_path / "out"))
    assert summary.frames == len(read(summary.path)[0]) == 7
    assert "4 frames have another size than the first, and are scaled to it." in capsys.readouterr().out
