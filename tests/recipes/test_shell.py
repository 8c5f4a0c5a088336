"""The shell scripts of recipes and of CI: linters find nothing and find a mistake, and missing variables are named."""

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.recipe_checks import lint

RECIPES = ROOT / "recipes"
SCRIPTS = [
    *sorted(RECIPES.rglob("*.sh")),
    *RECIPES.rglob("*.sbatch"),
    *sorted(ROOT.glob("scripts/*.sh")),
    ROOT / ".ci/run",
    ROOT / ".ci/renew-constraints",
]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_scripts_are_without_a_finding(script):
    assert lint(script) == ""
    assert script.name in ("need.sh", "settings.sh", "startup.sh", "train.sbatch") or script.stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("right", "wrong", "finding"),
    [
        ('--zone="$ZONE"', "--zone=$ZONE", "SC2086"),  # words are split
        ("  esac\n", "", "syntax error"),
        ('say "$@"', "say $@", "SC2068"),
    ],
)
def test_a_mistake_in_a_script_is_found(tmp_path, right, wrong, finding):
    text = (RECIPES / "tpu-vm/train.sh").read_text() + '\nsay "$@"\n'
    assert right in text
    broken = tmp_path / "train.sh"
    broken.write_text(text.replace(right, wrong))
    assert finding in lint(broken)


@pytest.mark.parametrize(
    ("script", "variables"),
    [
        ("bucket.sh", ["PROJECT", "REGION", "BUCKET"]),
        ("data.sh", ["BUCKET"]),
        ("tpu-vm/train.sh", ["PROJECT", "ZONE", "BUCKET"]),
        ("gke/cluster.sh", ["PROJECT", "ZONE", "BUCKET"]),
        ("gke/train.sh", ["PROJECT", "ZONE", "BUCKET"]),
        ("slurm/submit.sh", ["DATA", "WORKDIR"]),
    ],
)
def test_a_missing_variable_is_named_before_anything_happens(cloud, script, variables):
    for variable in variables:
        given = {other: "given" for other in variables if other != variable}
        process = cloud.run([RECIPES / script], cloud.folder, **given)
        assert process.returncode == 2
        assert re.fullmatch(rf"{Path(script).name}: set {variable}, .+\n", process.stderr)
    assert not cloud.calls("")


def test_the_stand_ins_refuse_unknown_flags(cloud):
    process = cloud.run(["gcloud", "storage", "cp", "--recursivly", "a", "b"], cloud.folder)
    assert (process.returncode, process.stderr) == (2, "gcloud: no such flag: --recursivly\n")


def test_one_version_of_uv_and_of_python():
    text = "\n".join(path.read_text() for path in RECIPES.rglob("*") if path.is_file())
    versions = re.findall(r"UV_VERSION(?:=|: |:-)(?:\$\{UV_VERSION:-)?([\d.]+)", text)
    assert len(versions) == 5
    assert len(set(versions)) == 1
    assert set(re.findall(r"(?:--python |python:)(3\.\d+)", text)) == {"3.11"}


@pytest.mark.parametrize("accelerator", ["tpu", "cuda13", "data"])
def test_every_package_has_one_version(accelerator):
    lines = (RECIPES / f"constraints/{accelerator}.txt").read_text().splitlines()
    packages = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==[\w.+]+", line) for line in lines if not line.startswith("#")]
    assert all(packages)
    names = {package[1] for package in packages}
    own = {"tpu": {"libtpu"}, "cuda13": {"jax-cuda13-plugin", "nvidia-cudnn-cu13"}, "data": {"tensorflow-datasets"}}
    assert {"jax", "jaxlib", "flax", "gcsfs"} | own[accelerator] <= names
