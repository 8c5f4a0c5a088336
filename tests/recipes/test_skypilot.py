"""The recipes for SkyPilot: its schema and ShellCheck find nothing and find a mistake, and the commands run."""

import copy

import pytest
import yaml

from tests.helpers import ROOT
from tests.helpers.recipe_checks import SKYPILOT, errors, lint

FILES = sorted((ROOT / "recipes/skypilot").glob("*.yaml"))


def skypilot_errors(task: dict) -> list[str]:
    return [*errors(task, SKYPILOT["task"]), *errors(task["resources"], SKYPILOT["resources"])]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_skypilot(cloud, tmp_path, file):
    task = yaml.safe_load(file.read_text())
    assert skypilot_errors(task) == []
    assert 75 in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    for change in ({"numnodes": 2}, {"resources": {**task["resources"], "spot": True}}, {"num_nodes": "two"}):
        assert len(skypilot_errors({**copy.deepcopy(task), **change})) == 1
    for part in ("setup", "run"):
        script = tmp_path / f"{part}.sh"
        script.write_text("#!/usr/bin/env bash\n" + "".join(f"export {key}\n" for key in task["envs"]) + task[part])
        assert lint(script) == ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_skypilot_starts_the_training_on_each_node(cloud, tmp_path, file):
    task = yaml.safe_load(file.read_text())
    program = tmp_path / "fasseg/venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/usr/bin/env bash\necho "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"\necho "$*"\n'
    )
    program.chmod(0o755)
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    envs = {key: str(value) for key, value in task["envs"].items()} | {"BUCKET": "b", "HOME": str(tmp_path)}
    process = cloud.run(["bash", "-c", task["run"]], tmp_path, **nodes, **envs)
    assert process.returncode == 0, process.stderr
    hosts, flags = process.stdout.splitlines()
    assert hosts.strip() == ("10.0.0.1:8476 2 1" if "num_nodes" in task else "")  # JAX finds TPUs' hosts by itself
    assert flags.endswith(
        "--config.data.root=gs://b/data/segmentation/ade20k/1.0.0 --workdir gs://b/runs/fasseg "
        "--config.model.dtype=bfloat16"
    )
