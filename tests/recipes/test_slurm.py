"""The recipe for Slurm: its options exist, and a job goes back to the queue when the run can go on."""

import re

import pytest

from tests.helpers import ROOT
from tests.helpers.cloud import FLAGS

RECIPES = ROOT / "recipes"


def test_slurm_options_exist():
    text = (RECIPES / "slurm/train.sbatch").read_text()
    options = re.findall(r"^#SBATCH --([\w-]+)", text, re.M)
    assert "requeue" in options
    assert set(options) <= set(FLAGS["sbatch"].split())
    assert text.index("#SBATCH --signal") < text.index("\nset ")  # sbatch reads no further than the first command


def test_slurm_submits_with_an_installation(cloud, tmp_path):
    cloud.write_program("uv", f"echo $* >> {tmp_path}/uv; mkdir -p '{tmp_path}/env'\n")
    variables = {"DATA": "/d", "WORKDIR": "/w", "NODES": "2", "ENVIRONMENT": str(tmp_path / "env")}
    for _ in range(2):  # the second time everything is installed
        process = cloud.run([RECIPES / "slurm/submit.sh", "--config.x=1"], tmp_path, **variables)
        assert process.returncode == 0, process.stderr
    installed = (tmp_path / "uv").read_text().splitlines()
    assert installed[1:] == [
        f"pip install --python {tmp_path}/env/bin/python "
        "--constraints recipes/constraints/cuda13.txt .[cuda13,gcs,tfds]"
    ]
    assert (
        cloud.calls("sbatch")
        == [
            "sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=8 --time=24:00:00 "
            "recipes/slurm/train.sbatch --config.x=1"
        ]
        * 2
    )


@pytest.mark.parametrize(
    ("status", "restarted", "requeued"),
    [(0, 0, False), (1, 0, False), (2, 0, False), (75, 0, True), (137, 4, True), (75, 5, False)],
)
def test_slurm_goes_back_to_the_queue_only_when_the_run_can_go_on(cloud, tmp_path, status, restarted, requeued):
    (tmp_path / "bin" / "activate").touch()
    cloud.write_program("srun", f"exit {status}\n")
    slurm = {"SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarted), "RESTARTS": "5"}
    ours = {"DATA": "/d", "WORKDIR": "/w", "CONFIG": "ade20k", "ENVIRONMENT": str(tmp_path)}
    process = cloud.run(["bash", RECIPES / "slurm/train.sbatch"], tmp_path, **slurm, **ours)
    assert process.returncode == status, process.stderr
    assert cloud.calls("scontrol") == ["scontrol requeue 7"] * requeued
