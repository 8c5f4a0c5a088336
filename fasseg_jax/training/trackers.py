"""Copies of a run's numbers in Weights & Biases and MLflow, if `config.train.trackers` names them.

Each tracker reads its own environment variables for server, account and project. A run that is resumed goes on in the
same run of the tracker, whose id is in WORKDIR/trackers.json.
"""

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from ml_collections import ConfigDict

from fasseg_jax.config import flat_fields
from fasseg_jax.runtime.files import Path, in_bucket, write_atomically

__all__ = ["TRACKERS", "Trackers"]

IDS_FILE = "trackers.json"  # in the folder of a run: name of the tracker -> id of the run
MLFLOW_BATCH = 100  # parameters that MLflow takes at once
DEFAULT_PROJECT = "fasseg_jax"


class Tracker(Protocol):
    """A run that a service keeps. The constructor takes the fields, the run's folder, and the id of an earlier start.

    Attributes:
      id: of the run.
    """

    id: str

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars after `step` steps."""

    def close(self) -> None:
        """Upload what is left."""


class WandbTracker:
    """Weights & Biases: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE, WANDB_DIR and the like."""

    def __init__(self, fields: Mapping[str, object], workdir: Path, run_id: str | None):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            name=workdir.name,
            dir=os.environ.get("WANDB_DIR") or (None if in_bucket(workdir) else str(workdir)),
            config=dict(fields),
            id=run_id,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),  # a progress bar has the terminal
        )
        self._run.define_metric("*", step_metric="step")  # a restart repeats steps, which their own counter refuses
        self.id = self._run.id

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the like."""

    def __init__(self, fields: Mapping[str, object], workdir: Path, run_id: str | None):
        import mlflow

        self._client = mlflow.MlflowClient()
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            self.id = self._client.create_run(experiment, run_name=workdir.name).info.run_id
            parameters = [mlflow.entities.Param(field, str(value)) for field, value in fields.items()]
            for first in range(0, len(parameters), MLFLOW_BATCH):
                self._client.log_batch(self.id, params=parameters[first : first + MLFLOW_BATCH])
        else:
            self.id = run_id
            self._client.update_run(run_id, status="RUNNING")
        self._metric = mlflow.entities.Metric

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


# Value of `config.train.trackers` -> the class; packages and extras have the same name.
TRACKERS: dict[str, Callable[[Mapping[str, object], Path, str | None], Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}


class Trackers:
    """The trackers of a run. One that fails later, for example without network, does not end the training."""

    def __init__(self, config: ConfigDict, workdir: Path, say: Callable[[str], None]):
        """Begin or continue the run of each tracker that `config.train.trackers` names.

        Args:
          config: the whole configuration, which the trackers keep.
          workdir: the folder of the run.
          say: prints a line.

        Raises:
          ValueError: a package is not installed, or a service refuses the run.
          WriteError: the ids cannot be written.
        """
        self._say, self._failed = say, set[str]()
        self._trackers: dict[str, Tracker] = {}
        names = config.train.trackers
        for name in names:
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"config.train.trackers: {name} is not installed: pip install 'fasseg_jax[{name}]'")
        if not names:
            return
        file = workdir / IDS_FILE
        ids = _read_ids(file)
        for name in names:
            try:
                self._trackers[name] = TRACKERS[name](flat_fields(config), workdir, ids.get(name))
            except Exception as error:  # each service has errors of its own
                self.close()
                raise ValueError(
                    f"config.train.trackers: {name} does not take this run ({_in_a_line(error)}); see to it, or leave "
                    f"{name} out"
                ) from error
        with write_atomically(file) as partial:
            partial.write_text(json.dumps(ids | {name: tracker.id for name, tracker in self._trackers.items()}))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars after `step` steps to each tracker's run."""
        for name, tracker in self._trackers.items():
            with self._said(name):
                tracker.numbers(step, values)

    def close(self) -> None:
        """Let each tracker upload what is left."""
        for name, tracker in self._trackers.items():
            with self._said(name):
                tracker.close()

    @contextlib.contextmanager
    def _said(self, name: str):
        """Say the first error of a tracker in a line; `metrics.jsonl` has all numbers."""
        try:
            yield
        except Exception as error:  # each service has errors of its own
            if name not in self._failed:
                self._failed.add(name)
                self._say(f"{name} misses numbers of this run, which metrics.jsonl has ({_in_a_line(error)}).")


def _read_ids(file: Path) -> dict[str, str]:
    """The ids of the runs; empty if this is the first start."""
    try:
        ids = json.loads(file.read_text())
        return {str(name): str(run_id) for name, run_id in ids.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not what a training wrote there; remove it to begin new runs of trackers") from error


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
