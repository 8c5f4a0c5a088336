"""The folder of compiled programs: one that cannot be written is said in a line, and the program goes on."""

import gc
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from fasseg_jax.runtime.compilation import enable_compilation_cache
from fasseg_jax.runtime.garbage import paused_garbage_collection
from tests.helpers import ROOT, error_lines
from tests.helpers.full_disk import limited_files


@pytest.fixture(autouse=True)
def restored():
    """The settings of the tests themselves."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    values = {name: getattr(jax.config, name) for name in names}
    with warnings.catch_warnings():
        yield
    for name, value in values.items():
        jax.config.update(name, value)


def test_a_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert enable_compilation_cache() == tmp_path / "new" / "cache"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "cache")
    assert not list((tmp_path / "new" / "cache").glob("[!.]*")) and not capsys.readouterr().err


def test_programs_written_in_part_are_removed(tmp_path, monkeypatch, capsys):
    """JAX itself can neither read nor replace them."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    compilation_cache.reset_cache()
    enable_compilation_cache()
    jax.jit(lambda x: x * 3 + 1).lower(jax.ShapeDtypeStruct((3,), "float32")).compile()
    (entry,) = tmp_path.glob("*-cache")
    whole = entry.read_bytes()
    other = tmp_path / "of_zstandard-cache"
    other.write_bytes(b"\x28\xb5\x2f\xfd")
    for part in (b"", whole[:1], whole[: len(whole) // 2], whole[:-1], whole[:20] + b"garbage" + whole[20:]):
        entry.write_bytes(part)
        enable_compilation_cache()
        assert list(tmp_path.glob("*-cache")) == [other]
    entry.write_bytes(whole)
    enable_compilation_cache()
    assert entry.read_bytes() == whole and not capsys.readouterr().err
    compilation_cache.reset_cache()


def test_it_lies_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert enable_compilation_cache() == tmp_path / ".cache" / "fasseg_jax"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("a file", "cannot write {}/home: it is a file, not a folder"),
        ("a link", "cannot write {}/home: it is a symbolic link to something that does not exist"),
        ("below a file", "Not a directory"),
        ("full", "File too large"),
        ("none", "Could not determine home directory."),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, place, message):
    home = tmp_path / "home"
    if place in ("a file", "below a file"):
        home.write_text("a file")
    elif place == "a link":
        home.symlink_to("nowhere")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(home / "cache" if place == "below a file" else home))
    if place == "none":
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setattr(Path, "home", no_home)
    with limited_files(0 if place == "full" else 1 << 30):
        assert enable_compilation_cache() is None
    line = capsys.readouterr().err
    assert message.format(tmp_path) in line and line.count("\n") == 1
    assert "JAX_COMPILATION_CACHE_DIR names another folder" in line
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_pause_of_garbage_collection_ends(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), paused_garbage_collection():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_programs_run_without_a_home(tmp_path, home):
    """Also the libraries must not need one."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "JAX_COMPILATION_CACHE_DIR")
    }
    environment |= {"XDG_CACHE_HOME": "/dev/null/cache", **({} if home is None else {"HOME": home})}
    if home is None:  # the home is then that of the list of users
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
    recipe = tmp_path / "tiny.py"
    recipe.write_text("from tests.helpers.tiny import tiny_config as get_config\n")
    process = subprocess.run(
        [sys.executable, ROOT / "predict.py", "--untrained", f"--config={recipe}", "--output", tmp_path / "out"],
        env={**environment, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    lines = error_lines(process.stderr)
    assert len(lines) == (home is not None) and all("compiled programs are not kept" in line for line in lines)
    assert (tmp_path / "out" / "generated_overlay.png").exists()
