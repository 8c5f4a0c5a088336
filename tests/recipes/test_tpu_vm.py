"""The recipe for Cloud TPU VMs runs with stand-ins for the cloud's programs: what it requests, and when it ends."""

import tarfile

import pytest

from tests.helpers import ROOT

TRAIN = ROOT / "recipes" / "tpu-vm" / "train.sh"
VARIABLES = {"PROJECT": "p", "ZONE": "us-west4-a", "BUCKET": "b"}
CREATE, DELETE = (f"gcloud compute tpus queued-resources {verb}" for verb in ("create", "delete"))


def train(cloud, *flags, **variables):
    return cloud.run([TRAIN, *flags], ROOT, **VARIABLES, **variables)


# The slice: train.sh


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lives", "status", "requests"),
    [
        ([["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE; 0 3", "ACTIVE; 0 3; 0 0"]], 0, 1),
        ([["ACTIVE", "ACTIVE; 2 1"]], 2, 1),  # wrong usage
        ([["ACTIVE; 75 0; 1 3"]], 1, 1),  # an error of one host; the first one has lost it
        ([["ACTIVE", "ACTIVE; 75 1"], ["ACTIVE; 0 0"]], 0, 2),  # the hosts gave up
        ([["ACTIVE", "SUSPENDING", "SUSPENDED"], ["ACTIVE"] * 3 + ["ACTIVE; 0 0"]], 0, 2),  # taken away
        ([["FAILED"], ["SUSPENDED"], ["ACTIVE; 0 0"]], 0, 3),  # not to be had
        ([["ACTIVE", "no answer", "no answer", "ACTIVE; 0 0"]], 0, 1),
        ([["ACTIVE; 0 0", "SUSPENDED"]], 0, 1),  # done before it was taken away
    ],
)
def test_a_slice_is_requested_until_the_training_has_ended(cloud, lives, status, requests):
    cloud.lives(*lives)
    process = train(cloud)
    assert process.returncode == status, process.stderr
    assert len(cloud.calls(CREATE)) == requests
    assert len(cloud.calls(DELETE)) == requests  # nothing is left that costs
    assert f"the training ended with status {status}; it is in gs://b/runs/fasseg" in process.stderr


@pytest.mark.slow
def test_it_gives_up(cloud):
    cloud.lives(*[["SUSPENDED"]] * 9)
    process = train(cloud, REQUESTS="3")
    assert process.returncode == 75
    assert len(cloud.calls(CREATE)) == len(cloud.calls(DELETE)) == 3
    assert process.stderr.endswith("train.sh: giving up after 3 requests for the slice\n")


def test_a_slice_that_is_there_is_watched(cloud):
    cloud.lives(["ACTIVE", "ACTIVE; 0 0"], there=True)
    assert train(cloud).returncode == 0
    assert not cloud.calls(CREATE)


def test_an_old_end_is_forgotten(cloud):
    """Objects of the slice before must not end the next one."""
    cloud.path("gs://b/recipes/fasseg/ended").mkdir(parents=True)
    cloud.path("gs://b/recipes/fasseg/ended/0").write_text("0 0\n")
    cloud.lives(["ACTIVE"] * 3 + ["ACTIVE; 2 0"])
    assert train(cloud).returncode == 2


def test_a_first_request_that_is_refused_ends_it(cloud):
    cloud.lives(["ACTIVE"])
    (cloud.folder / "failing").write_text(CREATE)
    assert train(cloud).returncode == 2
    assert len(cloud.calls(CREATE)) == 1


def test_what_is_requested(cloud):
    cloud.lives(["ACTIVE; 0 0"])
    process = train(cloud, CAPACITY="", ACCELERATOR_TYPE="v5litepod-64")
    assert process.returncode == 0, process.stderr
    (create,) = cloud.calls(CREATE)
    assert "--accelerator-type=v5litepod-64 " in create
    assert "--service-account=fasseg@p.iam.gserviceaccount.com" in create
    assert "--spot" not in create
    with tarfile.open(cloud.path("gs://b/recipes/fasseg/source.tar.gz")) as archive:
        names = archive.getnames()
        assert {"train.py", "recipes/tpu-vm/host.sh", "recipes/constraints/tpu.txt"} <= set(names)
        assert not any(name.startswith("tests/") for name in names)


# The hosts: startup.sh and host.sh


@pytest.fixture
def host(cloud, tmp_path):
    """A host of a slice: `host(*statuses)` starts it, and returns the process, starts of the training, and its end."""
    uv = f'exec "{cloud.programs}/uv" "$@"'
    installer = f"cat > \"$UV_UNMANAGED_INSTALL/uv\" <<'X'\n#!/usr/bin/env bash\n{uv}\nX\nchmod +x bin/uv"
    (tmp_path / "install.sh").write_text(f"mkdir -p bin\n{installer}\n")
    number = f"case $* in *agent-worker-number*) echo 3 ;; *) cat '{tmp_path}/install.sh' ;; esac\n"
    recorded = (cloud.programs / "curl").read_text().replace("exec ", "").split("\n", 1)[1]
    cloud.write_program("curl", f"{recorded.strip()} || exit\n{number}")
    recorded = (cloud.programs / "uv").read_text().replace("exec ", "").split("\n", 1)[1]
    cloud.write_program("uv", f"{recorded.strip()} || exit\nmkdir -p venv/bin; touch venv/bin/activate\n")
    cloud.write_program("systemd-run", 'exec "${@: -1}"\n')
    cloud.write_program(
        "python",
        f"cd '{tmp_path}'; status=$(head -n 1 statuses); sed -i 1d statuses\n"
        'echo "$JAX_COMPILATION_CACHE_DIR $*" >> starts; exit "$status"\n',
    )
    cloud.lives(["ACTIVE; 0 0"])
    assert train(cloud, "--config.x=a b").returncode == 0  # it writes startup.sh and the source
    cloud.path("gs://b/recipes/fasseg/ended/0").unlink()

    def start(*statuses):
        (tmp_path / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
        process = cloud.run(["bash", tmp_path / "startup.sh"], tmp_path, FOLDER=str(tmp_path / "fasseg"))
        starts = tmp_path / "starts"
        ended = cloud.path("gs://b/recipes/fasseg/ended/3")
        lines = starts.read_text().splitlines() if starts.exists() else []
        return process, lines, ended.read_text() if ended.exists() else None

    return start


@pytest.mark.parametrize(("statuses", "end"), [([0], 0), ([75, 137, 0], 0), ([2], 2), ([75, 1], 1)])
def test_a_host_trains_until_the_end_and_says_how_it_ended(cloud, host, statuses, end):
    process, starts, ended = host(*statuses)
    assert (process.returncode, ended) == (end, f"{end} 3\n"), process.stderr
    expected = "train.py --config configs/ade20k.py:r50 --config.data.source=tfds --config.data.root="
    expected += "gs://b/data/segmentation/ade20k/1.0.0"
    assert starts == [f"gs://b/cache {expected} --workdir gs://b/runs/fasseg --config.x=a b"] * len(statuses)
    assert cloud.calls("uv") == [
        "uv venv --clear --python 3.11 venv",
        "uv pip install --python venv/bin/python --constraints recipes/constraints/tpu.txt .[tpu,gcs,tfds]",
    ]


def test_an_installation_that_fails_is_an_error(cloud, host):
    (cloud.folder / "failing").write_text("uv pip")
    process, starts, ended = host(0)
    assert (process.returncode, ended, starts) == (1, "1 3\n", [])
    assert len(cloud.calls("uv pip")) == 3


# The bucket and the data


def test_a_project_is_prepared_once(cloud):
    script, variables = ROOT / "recipes/bucket.sh", {"PROJECT": "p", "REGION": "us-west4", "BUCKET": "b"}
    process = cloud.run([script], ROOT, **variables)
    assert process.returncode == 0, process.stderr
    made = ["gcloud storage buckets create gs://b ", "gcloud iam service-accounts create fasseg "]
    assert [len(cloud.calls(call)) for call in made] == [1, 1]
    (cloud.folder / "everything is there").touch()
    assert cloud.run([script], ROOT, **variables).returncode == 0
    assert [len(cloud.calls(call)) for call in made] == [1, 1]
    member = "--member=serviceAccount:fasseg@p.iam.gserviceaccount.com --role=roles/storage.objectUser"
    assert all(member in call for call in cloud.calls("gcloud storage buckets add-iam-policy-binding gs://b "))


def test_data_are_prepared_from_the_folder_that_is_named(cloud, tmp_path):
    (tmp_path / "my data").mkdir()
    process = cloud.run([ROOT / "recipes/data.sh", "my data"], tmp_path, BUCKET="b")
    assert process.returncode == 0, process.stderr
    (call,) = cloud.calls("uvx")
    assert call.endswith(f"--config.data.root={tmp_path}/my data --output gs://b/data")
    missing = cloud.run([ROOT / "recipes/data.sh", "nothing"], tmp_path, BUCKET="b")
    assert (missing.returncode, missing.stderr) == (2, f"data.sh: there is no folder {tmp_path}/nothing\n")
