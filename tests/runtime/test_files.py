"""Files that appear only when they are complete, and the search for files."""

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.runtime.command_line import one_line
from fasseg_jax.runtime.files import Path, WriteError, list_files, write_atomically
from fasseg_jax.runtime.record_file import RecordFile
from fasseg_jax.weights.torch_files import write_state_dict
from tests.helpers.full_disk import limited_files


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file.npz"
    with write_atomically(path) as partial:
        partial.write_text("some")
        assert partial.name == path.name and not path.exists()
    assert path.read_text() == "some"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as partial:
        partial.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with write_atomically(path) as first, write_atomically(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ended last


def test_list_files(tmp_path):
    for name in ("b/c.txt", "a", "b/.hidden", ".cache/d", "out/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    found = list_files(tmp_path, exclude=tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a", "b/.hidden", "b/c.txt"]
    with pytest.raises(FileNotFoundError):
        list_files(tmp_path / "absent")


WRITERS = {
    "text": lambda file: file.write_text("x" * 200_000),
    "png": lambda file: Image.fromarray(NOISE).save(file),
    "npy": lambda file: np.save(file, NOISE),
    "npz": lambda file: np.savez(file, noise=NOISE),
    "safetensors": lambda file: write_state_dict(file, {"noise": NOISE}),
}
NOISE = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)


@pytest.mark.parametrize("space", [0, 10, 100, 9000, 100_000])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, kind, space):
    path = tmp_path / f"file.{kind}"
    path.write_text("old")
    with limited_files(space), pytest.raises(WriteError) as error, write_atomically(path) as partial:
        WRITERS[kind](partial)
    assert str(error.value).startswith((f"cannot write {path}: ", "cannot write " + str(tmp_path / ".partial-")))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("obstacle", "message"),
    [
        (lambda folder: folder.write_text("a file"), "it is a file, not a folder"),
        (lambda folder: folder.symlink_to("nowhere"), "a symbolic link to something that does not exist"),
        (lambda folder: (folder / "file.txt" / "full").mkdir(parents=True), "Is a directory"),
    ],
    ids=["a file in place of the folder", "a dangling link", "a folder in place of the file"],
)
def test_an_obstacle_is_named(tmp_path, obstacle, message):
    obstacle(tmp_path / "out")
    with pytest.raises(WriteError, match=message) as error, write_atomically(tmp_path / "out" / "file.txt") as partial:
        partial.write_text("new")
    assert str(tmp_path / "out") in str(error.value) and ".partial" not in str(error.value)


def test_a_name_of_the_greatest_length(tmp_path):
    path = tmp_path / ("ä" * 125 + ".tiff")
    with write_atomically(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    longer = tmp_path / ("ä" * 130)
    with pytest.raises(WriteError, match="File name too long"), write_atomically(longer) as partial:
        partial.write_text("new")


def test_an_error_of_the_caller_is_not_one_of_writing(tmp_path):
    with pytest.raises(ValueError, match="the caller's"), write_atomically(tmp_path / "file"):
        raise ValueError("the caller's")


@pytest.mark.parametrize("space", range(0, 100, 7))
def test_records_are_whole_on_a_full_disk(tmp_path, space):
    path = tmp_path / "new" / "records"
    file = RecordFile(path)
    added = 0
    with limited_files(space), pytest.raises(WriteError, match=f"cannot write {path}: File too large"):
        while True:
            file.add(b"0123456789\n")
            added += 1
    assert path.read_bytes() == b"0123456789\n" * added and added == space // 11
    file.add(b"room\n")  # there is room again
    file.close()
    assert path.read_bytes().endswith(b"\nroom\n") or added == 0


def test_records_are_appended_to_what_is_kept(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(b"one\ntw")
    file = RecordFile(path, length=4)
    file.add(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"  # before it is closed
    file.close()


def test_a_full_device_is_named():
    file = RecordFile(Path("/dev/full"))
    with pytest.raises(WriteError, match="cannot write /dev/full: No space left on device"):
        file.add(b"record")
    file.close()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("a\nb  c", "a b c"),
        ("x\x1b[2J\x07\x7f\x9b", r"x\x1b[2J\x07\x7f\x9b"),
        ("Ätherblau 道路 \U0001f600 [b]", "Ätherblau 道路 \U0001f600 [b]"),
    ],
)
def test_messages_are_one_line_that_cannot_rewrite_the_terminal(message, line):
    assert one_line(message) == line
