"""The recipe for GKE: the JobSet and the files of the image are valid, mistakes in them are found, and it all runs.

The cloud's programs are stand-ins, which refuse flags that do not exist.
"""

import subprocess
from pathlib import Path

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from tests.helpers import ROOT
from tests.helpers.recipe_checks import errors, jobset_schema

RECIPES = ROOT / "recipes"
GKE = {"PROJECT": "p", "ZONE": "us-west4-a", "BUCKET": "b"}


def render(cloud, *flags, **variables) -> dict:
    process = cloud.run([RECIPES / "gke/train.sh", *flags], ROOT, **GKE, RENDER="true", **variables)
    assert process.returncode == 0, process.stderr
    assert "${" not in process.stdout
    return yaml.safe_load(process.stdout)


@pytest.mark.parametrize("slices", [1, 3])
def test_jobset(cloud, slices):
    jobset = render(cloud, "--config.model.dtype=bfloat16", '--config.x=it\'s, "here"', SLICES=str(slices))
    assert errors(jobset, jobset_schema()) == []
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * chips == 4 * 4  # the topology
    assert container["args"][-2:] == ["--config.model.dtype=bfloat16", '--config.x=it\'s, "here"']
    assert container["args"][container["args"].index("--workdir") + 1] == "gs://b/runs/fasseg"
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2]  # and 75 restarts everything
    assert rule["onExitCodes"]["containerName"] == container["name"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("replicatedJobs", 0, "template", "spec", "podFailurePolicy", "rules", 0, "action"), "Fail"),
        (("replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolice"), "Never"),
        (("replicatedJobs", 0, "template", "spec", "template", "spec", "dnsPolicy"), "Host"),
        (("replicatedJobs", 0, "replicas"), "two"),
        (("failurePolicy", "rules", 0, "action"), "Stop"),
        (("failurePolicy", "maxRestart"), 3),
    ],
)
def test_a_mistake_in_the_jobset_is_found(cloud, path, value):
    jobset = render(cloud)
    node = jobset["spec"]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert len(errors(jobset, jobset_schema())) == 1


def test_a_jobset_is_created(cloud):
    process = cloud.run([RECIPES / "gke/train.sh"], ROOT, **GKE)
    assert process.returncode == 0, process.stderr
    (call,) = cloud.records("kubectl create")
    assert yaml.safe_load(call["input"]) == render(cloud)


@pytest.mark.slow
def test_a_cluster_is_made_once(cloud):
    script, made = (
        RECIPES / "gke/cluster.sh",
        [f"gcloud container {kind} create" for kind in ("clusters", "node-pools")],
    )
    process = cloud.run([script], ROOT, **GKE, SLICES="2")
    assert process.returncode == 0, process.stderr
    assert [len(cloud.calls(call)) for call in made] == [1, 2]
    assert all("--tpu-topology=4x4 --num-nodes=4 --spot" in call for call in cloud.calls(made[1]))
    (cloud.folder / "everything is there").touch()
    assert cloud.run([script], ROOT, **GKE, SLICES="2").returncode == 0
    assert [len(cloud.calls(call)) for call in made] == [1, 2]
    wrong = cloud.run([script], ROOT, **GKE, TOPOLOGY="4 x 4")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def hadolint(dockerfile: Path) -> str:
    return subprocess.run(["hadolint", dockerfile], capture_output=True, text=True, check=False).stdout


def test_dockerfile(tmp_path):
    dockerfile = RECIPES / "gke/Dockerfile"
    assert hadolint(dockerfile) == ""
    steps = DockerfileParser(fileobj=dockerfile.open("rb")).structure
    copied = [source for step in steps if step["instruction"] == "COPY" for source in step["value"].split()[:-1]]
    assert "fasseg_jax" in copied
    assert all((ROOT / source).exists() for source in copied)
    broken = tmp_path / "Dockerfile"
    broken.write_text(dockerfile.read_text().replace("python:3.11-slim-bookworm", "python").replace("COPY", "COPI", 1))
    assert "unexpected 'C'" in hadolint(broken)


@pytest.mark.slow
def test_cloud_build(tmp_path):
    file = RECIPES / "gke/cloudbuild.yaml"
    broken = tmp_path / "cloudbuild.yaml"
    broken.write_text(file.read_text().replace("args:", "arguments:"))
    command = ["check-jsonschema", "--builtin-schema", "vendor.cloudbuild"]
    statuses = [
        subprocess.run([*command, path], capture_output=True, check=False).returncode for path in (file, broken)
    ]
    assert statuses == [0, 1]
