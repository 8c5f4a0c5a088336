"""Paths in buckets, with an emulator of Google Cloud Storage."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fasseg_jax.runtime import buckets
from fasseg_jax.runtime.buckets import BucketPath
from fasseg_jax.runtime.files import (
    Path,
    WriteError,
    file_state,
    in_bucket,
    list_files,
    local_copy,
    make_path,
    remove_folder,
    require_regular_file,
    write_atomically,
)
from fasseg_jax.runtime.record_file import RecordFile, list_record_files, read_records
from tests.helpers import ROOT
from tests.helpers.bucket import get, put


@pytest.mark.parametrize("name", ["s3://b/x", "http://host/x", "hdfs://host/x", "abfs://c/x", "az://c/x", "file:///x"])
def test_other_storage_is_refused(name):
    with pytest.raises(ValueError, match="only local paths and buckets of Google Cloud Storage") as error:
        make_path(name)
    assert str(error.value).startswith(f"{name}: ") and "\n" not in str(error.value)


def test_what_pathlib_makes_of_a_bucket_is_refused():
    with pytest.raises(ValueError, match="only local paths"):
        make_path(Path("gs://bucket/x"))


@pytest.mark.parametrize("name", ["gs://", "gs:///"])
def test_a_bucket_needs_a_name(name):
    with pytest.raises(ValueError, match="name a bucket"):
        make_path(name)


def test_local_paths_stay_as_they_are():
    assert type(make_path("a/b")) is type(Path("a/b")) and make_path("a/b") == Path("a/b")
    assert make_path("camera:0") == Path("camera:0") and not in_bucket(make_path("C:x"))


@pytest.mark.slow
def test_without_gcsfs_the_extra_is_named():
    program = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from fasseg_jax.runtime.files import make_path\n"
        "try: make_path('gs://b/x')\n"
        "except ValueError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith('gs://b/x: paths in buckets need gcsfs: pip install "fasseg_jax[gcs]"')
    assert run.stdout.count("\n") == 1 and not run.stderr


def test_parts_of_paths(emulator):
    path = make_path("gs://tests/a/b.tar.gz")
    assert str(path / "c") == "gs://tests/a/b.tar.gz/c" and path.parent == make_path("gs://tests/a")
    assert (path.name, path.stem, path.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert str(path.with_suffix(".npz")) == "gs://tests/a/b.tar.npz" and os.fspath(path) == str(path)
    assert path.relative_to(make_path("gs://tests")).as_posix() == "a/b.tar.gz"
    assert path.resolve() == path.expanduser() == path.absolute() == make_path(path)
    assert str(make_path("gs://tests/a/")) == "gs://tests/a"


ODD_NAMES = ["plain.txt", "a b#c?d%20e.txt", "[1]*.txt", "Straße 道路.txt", "a+b&c=d.txt"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_reading_and_writing(emulator, bucket_folder, name):
    path = make_path(bucket_folder) / name
    assert not path.exists() and not path.is_file() and get(emulator, str(path)) is None
    with write_atomically(path) as partial:
        partial.write_text("some äö")
        assert partial.name == name and not path.exists()
    assert get(emulator, str(path)) == "some äö".encode()
    assert path.is_file() and path.exists() and not path.is_dir() and path.parent.is_dir()
    assert path.read_text() == "some äö" and path.stat().st_size == 9 and path.open().read() == "some äö"
    with path.open("rb") as file:
        assert file.read(3) == b"som" and file.seek(5) == 5 and file.read() == "äö".encode()
    assert list(path.parent.iterdir()) == [path] == list_files(path.parent)
    with local_copy(path) as copy:
        assert copy.read_text() == "some äö" and copy.name == name
    assert not copy.exists()
    require_regular_file(path)
    path.unlink()
    assert get(emulator, str(path)) is None and not path.parent.exists()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()


def test_an_error_leaves_what_was_there(emulator, bucket_folder):
    path = make_path(bucket_folder) / "file"
    put(emulator, str(path), b"old")
    with pytest.raises(ZeroDivisionError), write_atomically(path) as partial:
        partial.write_text("half of the n")
        raise ZeroDivisionError
    assert get(emulator, str(path)) == b"old" and len(list_files(path.parent)) == 1


def test_large_objects(emulator, bucket_folder):
    """Those of over 5 MB are uploaded in several requests."""
    path = make_path(bucket_folder) / "array.npy"
    array = np.random.default_rng(0).integers(0, 256, 6_000_000, np.uint8)
    with write_atomically(path) as partial:
        np.save(partial, array)
    with local_copy(path) as copy:
        np.testing.assert_array_equal(np.load(copy), array)


def test_changes_by_others_are_seen(emulator, bucket_folder):
    folder = make_path(bucket_folder)
    put(emulator, f"{folder}/a", b"1")
    assert list(folder.iterdir()) == [folder / "a"]
    state = file_state(folder / "a")
    assert file_state(folder / "a") == state
    put(emulator, f"{folder}/a", b"2")
    put(emulator, f"{folder}/b", b"3")
    assert list(folder.iterdir()) == [folder / "a", folder / "b"] and (folder / "b").exists()
    assert (folder / "a").read_bytes() == b"2" and file_state(folder / "a") != state


def test_list_files(emulator, bucket_folder):
    folder = make_path(bucket_folder)
    for name in ("b/c.txt", "a", "b/.hidden", ".cache/d", "out/e", "empty/", "outer"):
        put(emulator, f"{folder}/{name}", b"")
    put(emulator, f"{folder}x/f", b"")  # of another folder
    found = list_files(folder, exclude=folder / "out")
    assert [path.relative_to(folder).as_posix() for path in found] == ["a", "b/.hidden", "b/c.txt", "outer"]
    with pytest.raises(FileNotFoundError):
        list_files(folder / "absent")


def test_glob(emulator, bucket_folder):
    folder = make_path(bucket_folder)
    for name in ("a1/x_1", "a1/x_2", "a1/y", "a[2]/x_3", "b/x_4", "x_5"):
        put(emulator, f"{folder}/{name}", b"")
    for pattern, names in {"x_*": ["x_5"], "a*/x_*": ["a1/x_1", "a1/x_2", "a[2]/x_3"], "c/*": [], "a1": ["a1"]}.items():
        assert [path.relative_to(folder).as_posix() for path in folder.glob(pattern)] == names
    assert not list((folder / "absent").glob("*"))


def test_a_folder_that_a_program_made_is_empty(emulator, bucket_folder):
    put(emulator, f"{bucket_folder}/empty/", b"")
    folder = make_path(f"{bucket_folder}/empty")
    assert folder.is_dir() and not list(folder.iterdir()) and not list_files(folder) and not list(folder.glob("*"))


def test_only_this_folder_is_removed(emulator, bucket_folder):
    """Names are never patterns: "[1]" is not "1"."""
    folder = make_path(bucket_folder)
    for name in ("[1]/a", "[1]/b/c", "1/a", "[1]x/a"):
        put(emulator, f"{folder}/{name}", b"")
    remove_folder(folder / "[1]")
    assert [path.relative_to(folder).as_posix() for path in list_files(folder)] == ["1/a", "[1]x/a"]
    remove_folder(folder / "absent")
    with pytest.raises(FileNotFoundError):
        (folder / "absent").rmtree()


def test_many_objects(emulator, bucket_folder):
    folder = make_path(bucket_folder)
    for number in range(120):
        put(emulator, f"{folder}/{number:03}", b"")
    assert list_files(folder) == [folder / f"{number:03}" for number in range(120)]
    remove_folder(folder)
    assert not folder.exists()


def test_records_are_new_objects(emulator, bucket_folder, monkeypatch):
    path = make_path(bucket_folder) / "new" / "lines.jsonl"
    assert read_records(path) == b"" and list_record_files(path.parent, "*.jsonl") == []
    file = RecordFile(path)
    file.add(b"one\n")
    file.add(b"two\n")
    assert not path.parent.exists()
    file.flush()
    assert get(emulator, f"{path}.00000001") == b"one\ntwo\n"
    file.flush()
    monkeypatch.setattr(buckets, "UPLOAD_SECONDS", 0)
    file.add(b"three\n")
    assert get(emulator, f"{path}.00000002") == b"three\n"
    monkeypatch.undo()
    file.add(b"four\n")
    file.close()
    later = RecordFile(path, length=3)  # objects are whole
    later.add(b"five\n")
    later.close()
    assert [part.name[-2:] for part in list_files(path.parent)] == ["01", "02", "03", "04"]
    assert read_records(path) == b"one\ntwo\nthree\nfour\nfive\n"
    assert list_record_files(path.parent, "*.jsonl") == [path] and list_record_files(path.parent, "*.csv") == []


def test_two_writers_of_records_are_told(emulator, bucket_folder):
    path = make_path(bucket_folder) / "lines"
    first, second = RecordFile(path), RecordFile(path)
    first.add(b"one\n")
    second.add(b"other\n")
    first.close()
    with pytest.raises(WriteError, match=f"cannot write {path}: another process has written it"):
        second.close()
    assert read_records(path) == b"one\n"


def test_an_answer_that_is_lost(emulator, bucket_folder):
    """The object is there already, because gcsfs tries again after a server's error."""
    path = make_path(bucket_folder) / "lines"
    file = RecordFile(path)
    put(emulator, f"{path}.00000001", b"one\n")
    file.add(b"one\n")
    file.flush()
    file.add(b"two\n")
    file.close()
    assert read_records(path) == b"one\ntwo\n"


def test_nothing_is_appended(emulator, bucket_folder):
    path = make_path(bucket_folder) / "file"
    put(emulator, str(path), b"old")
    with pytest.raises(OSError, match="nothing can be appended"):
        path.open("a")
    assert get(emulator, str(path)) == b"old"


def test_bucket_paths_reach_the_libraries(emulator, bucket_folder):
    """Orbax, JAX and tensorflow-datasets make paths by etils; it must keep these, and use the same file system."""
    from etils import epath

    path = make_path(bucket_folder)
    assert type(epath.Path(path)) is BucketPath and type(path / "x") is BucketPath
    other = epath.Path(bucket_folder) / "by etils"
    other.write_text("x")
    assert (path / "by etils").read_text() == "x"
