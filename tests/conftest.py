"""What all tests share: checked shapes, the compilation cache, and a configuration that is tiny but has every part."""

import gc
import os
import subprocess
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook
from ml_collections import ConfigDict

import tests.helpers.annotations  # noqa: F401  (the hook finds it by its name)
from tests.helpers import ROOT, xla_flags
from tests.helpers.bucket import emulated_buckets

os.environ["XLA_FLAGS"] = xla_flags()  # read when JAX first looks for devices; also by the processes that tests start

# Every call in these chapters is checked against its annotations, shapes included. It must come before their import.
CHECKED_CHAPTERS = ["inference", "losses", "models", "ops"]
install_import_hook([f"fasseg_jax.{chapter}" for chapter in CHECKED_CHAPTERS], "tests.helpers.annotations.check_calls")

from tests.helpers.tiny import tiny_config as make_tiny_config  # noqa: E402

# Tracing makes objects by the million, of which few are garbage. Looking for it as often as Python does by default
# takes an eighth of the time of tests that trace.
gc.set_threshold(100_000, 50, 1000)

# Compiled programs are kept between runs: a second run of the tests takes half the time.
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache/jax")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_addoption(parser):
    parser.addoption(
        "--reference",
        type=Path,
        help="folder of the complete golden arrays (with the photo case), in place of the thinned ones in tests/golden",
    )
    parser.addoption("--kills", type=int, default=2, help="how often the killed training is killed")


# With several workers these files begin first, so that none of them is left alone at the end.
LONGEST = (
    "training/test_train.py",
    "test_docs.py",
    "training/test_train_step.py",
    "test_lost_hosts.py",
    "test_programs_in_buckets.py",
    "training/test_layouts.py",
    "training/test_train_golden.py",
    "models/test_model.py",
    "test_golden.py",
    "evaluation/test_eval.py",
    "weights/test_hugging_face.py",
    "weights/test_vit.py",
    "training/test_early_stopping.py",
)


def pytest_collection_modifyitems(items):
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture
def tiny_config() -> ConfigDict:
    """FASeg with every part and five classes, small enough to compile in seconds."""
    return make_tiny_config(num_classes=5)


@pytest.fixture(scope="session")
def emulator():
    with emulated_buckets() as emulator:
        yield emulator


@pytest.fixture
def bucket_folder(emulator) -> str:
    """A folder in an emulated bucket, as a text: gs://BUCKET/NUMBER."""
    return emulator.new_folder()


@pytest.fixture(autouse=True)
def no_process_is_left(monkeypatch):
    """A test that fails leaves no program running."""
    started = []

    class RecordedProcess(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", RecordedProcess)
    yield
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
