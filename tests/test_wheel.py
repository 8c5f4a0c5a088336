"""The wheel by itself, outside of a clone: it holds the recipes, and its command trains and predicts."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.helpers import ROOT
from tests.helpers.tiny import photo
from tests.helpers.training_runs import TINY, environment

pytestmark = pytest.mark.slow  # every test starts processes

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
SOURCES = ("fasseg_jax", "configs", "pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy without what earlier builds left."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-c", BUILD, str(output)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return output / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of an installation; the libraries are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_the_recipes(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "fasseg_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    recipes = {f"fasseg_jax/recipes/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert {name for name in names if "/recipes/" in name} == recipes
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fasseg_jax"}


def test_train_and_predict_in_another_folder(installed, tmp_path):
    without_torch = environment()["PYTHONPATH"].split(os.pathsep)[0]
    variables = environment(PYTHONPATH=f"{installed}{os.pathsep}{without_torch}")  # not the clone

    def fasseg(*arguments, status=0):
        command = [str(installed / "bin" / "fasseg"), *arguments]
        run = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert run.returncode == status, run.stdout + run.stderr
        return run

    settings = [f"--config.{name}={value}" for name, value in {**TINY, "train.steps": 10}.items()]
    trained = fasseg("train", "--config=shapes", "--workdir=run", *settings)
    assert f"fasseg predict --checkpoint {tmp_path}/run/checkpoints/10 " in trained.stdout
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").open()]
    assert steps[-1] == 10
    Image.fromarray(photo(70, 100)).save(tmp_path / "photo.png")
    fasseg("predict", "--checkpoint=run", "--input=photo.png", "--output=results")
    assert np.asarray(Image.open(tmp_path / "results/photo_labels.png")).shape == (70, 100)
    missing = fasseg("train", "--config=shape", "--workdir=run", status=2)
    assert missing.stderr.startswith("fasseg train: there is no recipe 'shape'; there are ade20k, c")
    assert missing.stderr.count("\n") == 1
