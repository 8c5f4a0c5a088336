"""Files that appear only when they are complete, and the search for files."""

import pytest

from fasseg_jax.runtime.files import list_files, write_atomically


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
