"""Numbers of a run in Weights & Biases and MLflow. Their packages are no part of the tests: stand-ins take the calls.

With the packages (`pip install wandb mlflow`) the tests of the packages run too, offline.
"""

import importlib.util
import json
import sys
import types

import pytest

from fasseg_jax.config import flat_fields, load_config
from fasseg_jax.training import trackers
from fasseg_jax.training.metric_log import MetricLog
from fasseg_jax.training.trackers import Trackers


@pytest.fixture
def config():
    config = load_config("configs/shapes.py")
    config.train.trackers = ("fake",)
    return config


@pytest.fixture
def fake(monkeypatch):
    """A service: what its runs were told, by id."""
    runs = {}

    class Fake:
        def __init__(self, fields, workdir, run_id):
            self.id = run_id or f"run-{len(runs)}"
            runs.setdefault(self.id, []).append((workdir.name, fields["train.steps"]))

        def numbers(self, step, values):
            if values.get("loss") == 13:
                raise ConnectionError("no\nnetwork")
            runs[self.id].append((step, values))

        def close(self):
            runs[self.id].append("closed")

    monkeypatch.setitem(sys.modules, "fake", types.ModuleType("fake"))
    sys.modules["fake"].__spec__ = importlib.util.spec_from_loader("fake", None)
    monkeypatch.setitem(trackers.TRACKERS, "fake", Fake)
    return runs


def test_a_resumed_run_goes_on_in_the_same_run_and_errors_are_said_once(config, fake, tmp_path):
    said = []
    for start in (1, 2):
        log = MetricLog(tmp_path, 10, 0, trackers=Trackers(config, tmp_path, said.append))
        for loss in (5.0, 13.0, 13.0):
            log.numbers(start, {"loss": loss})
        log.close()
    told = (tmp_path.name, 1000)
    assert fake == {"run-0": [told, (1, {"loss": 5.0}), "closed", told, (2, {"loss": 5.0}), "closed"]}
    words = "fake misses numbers of this run, which metrics.jsonl has (ConnectionError: no network)."
    assert said == [words] * 2
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_packages_are_imported_only_if_they_are_named(config, tmp_path):
    config.train.trackers = ()
    Trackers(config, tmp_path, print).close()
    assert not {"wandb", "mlflow"} & sys.modules.keys() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(config, tmp_path, monkeypatch, name):
    config.train.trackers = (name,)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"{name} is not installed: pip install 'fasseg_jax\[{name}\]'"):
        Trackers(config, tmp_path, print)


def test_a_service_that_refuses_is_named(config, fake, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("wrong key")

    monkeypatch.setitem(trackers.TRACKERS, "fake", refuse)
    with pytest.raises(ValueError, match=r"fake does not take this run \(PermissionError: wrong key\)"):
        Trackers(config, tmp_path, print)
    assert not (tmp_path / "trackers.json").exists()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_ids_are_named(config, fake, tmp_path, text):
    (tmp_path / "trackers.json").write_text(text)
    with pytest.raises(ValueError, match=r"trackers.json: not what a training wrote there; remove it"):
        Trackers(config, tmp_path, print)


@pytest.mark.slow
def test_mlflow_itself(config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr(trackers, "MLFLOW_BATCH", 40)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    config.train.trackers = ("mlflow",)
    for start in (1, 2):
        both = Trackers(config, tmp_path / "run", print)
        both.numbers(start, {"loss": 0.5 * start, "goodput": 0.25})
        both.close()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("fasseg_jax").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "run/trackers.json").read_text())["mlflow"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in flat_fields(config).items()}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0)]


@pytest.mark.slow
def test_wandb_itself(config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config.train.trackers = ("wandb",)
    (tmp_path / "run").mkdir()
    for start in (1, 2):
        both = Trackers(config, tmp_path / "run", print)
        both.numbers(start, {"loss": 0.5 * start})
        both.close()
    wandb.teardown()
    (run_id,) = json.loads((tmp_path / "run/trackers.json").read_text()).values()
    files = list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * 2
    assert all(b"loss" in file.read_bytes() and b"poly_power" in file.read_bytes() for file in files)
