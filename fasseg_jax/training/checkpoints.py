"""Checkpoints of a running training. Orbax writes them in the background; each is complete or absent.

A step's directory is a checkpoint that `fasseg_jax.weights.checkpoint` can read (what to predict with, configuration,
classes), and also holds what training needs to resume. The data need no state: a batch depends only on its step.
"""

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.runtime.files import Path, in_bucket, make_path, named_write_errors
from fasseg_jax.training.train_step import TrainState
from fasseg_jax.weights.checkpoint import best_step
from fasseg_jax.weights.checkpoint_metadata import (
    CheckpointMetadata,
    absolute_path,
    checkpoint_metadata,
    complete_copied,
    load_metadata,
)

__all__ = ["CheckpointError", "RunCheckpoints"]

ADVICE = {False: "Is the disk full? Make room", True: "Can the bucket be reached and written? See to it"}
REMOVED = "removed"  # folder where checkpoints that are not kept wait until they are deleted


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read. The message names it and says what to do."""


class RunCheckpoints:
    """The checkpoints of a run, in DIRECTORY/STEP.

    A run keeps its latest `config.train.keep_checkpoints` ones, and the best by mean IoU.
    """

    def __init__(
        self,
        directory: str | Path,
        config: ConfigDict,
        classes: ClassTable,
        samples: Mapping[str, int],
        fingerprints: Mapping[str, str] | None = None,
    ):
        """Open or make the directory, and begin to remove what interrupted writes left; `save` waits for the end of it.

        Args:
          directory: of the checkpoints.
          config: the whole configuration, for the metadata of what is saved.
          classes: of the data, likewise.
          samples: number of samples of each split, likewise.
          fingerprints: `Source.fingerprint` of each split, likewise.

        Raises:
          WriteError: the directory cannot be made or written.
        """
        policies = ocp.checkpoint_managers
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["mean_iou"], n=1, keep_checkpoints_without_metrics=False
        )
        latest = policies.LatestN(config.train.keep_checkpoints)
        with named_write_errors(make_path(directory)):
            _complete_copied(absolute_path(directory))
            self._manager = ocp.CheckpointManager(
                absolute_path(directory),
                item_names=("variables", "metadata", "training"),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy([latest, best]),
                    cleanup_tmp_directories=True,
                    # Orbax moves a checkpoint there before it deletes it. Otherwise a run that is killed meanwhile
                    # would leave a checkpoint under its name that lacks files.
                    todelete_subdir=REMOVED,
                    async_options=ocp.AsyncOptions(barrier_sync_fn=barrier_of_healthy_hosts()),
                ),
            )
            self._delete_removed()
        self._metadata = checkpoint_metadata(config, classes, samples=samples, fingerprints=fingerprints)

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None if there is no checkpoint."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int:
        """The step of the checkpoint of the best mean IoU; of the latest if none was evaluated."""
        return best_step(self._mean_ious())

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and mean IoU of the checkpoint of the best mean IoU; None if none was evaluated."""
        mean_ious = self._mean_ious()
        mean_iou = mean_ious[best_step(mean_ious)] if mean_ious else None
        return None if mean_iou is None else (best_step(mean_ious), mean_iou)

    def _mean_ious(self) -> dict[int, float | None]:
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        return {step: values["mean_iou"] if values else None for step, values in metrics.items()}

    def path_of(self, step: int) -> epath.Path:
        """The directory of a step's checkpoint."""
        return self._manager.directory / str(step)

    def metadata(self, step: int) -> CheckpointMetadata:
        """What a step's checkpoint says of the run that wrote it."""
        return load_metadata(self.path_of(step))

    def save(self, step: int, state: TrainState, mean_iou: float | None = None) -> None:
        """Begin to write the state after `step` steps. The arrays are copied before this returns.

        Raises:
          CheckpointError: this or an earlier checkpoint cannot be written.
        """
        metrics = None if mean_iou is None else {"mean_iou": mean_iou}
        items = {
            "variables": ocp.args.PyTreeSave(state.variables()),
            "metadata": ocp.args.JsonSave(self._metadata),
            "training": ocp.args.PyTreeSave(_training_part(state)),
        }
        if metrics:  # Orbax itself writes them only with its deprecated options
            items["metrics"] = ocp.args.JsonSave(metrics)
        with self._named_errors():
            self._delete_removed()
            self._manager.save(step, metrics=metrics, args=ocp.args.Composite(**items))

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Read the state after `step` steps.

        Args:
          step: of an existing checkpoint.
          like: the state's shapes and shardings, `ShapeDtypeStruct`s.

        Raises:
          CheckpointError: the checkpoint is damaged or of another model.
        """
        wanted = {"variables": like.variables(), "training": _training_part(like)}
        arguments = {
            name: ocp.args.PyTreeRestore(tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
            for name, tree in wanted.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except Exception as error:  # Orbax and the storage library below it raise errors of many types
            others = sorted(other for other in self._manager.all_steps() if other != step)
            advice = f"remove it to resume from step {others[-1]}" if others else "this run has no other"
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise CheckpointError(f"{self.path_of(step)}: cannot be read ({reason}); {advice}") from error
        variables, training = restored["variables"], restored["training"]
        return dataclasses.replace(
            like,
            step=training["step"],
            params=training.get("params", variables["params"]),
            batch_stats=variables.get("batch_stats", {}),
            opt_state=training["opt_state"],
            ema_params=variables["params"] if "params" in training else None,
        )

    def close(self) -> None:
        """Wait until all checkpoints are written, and end the threads that write.

        Raises:
          CheckpointError: one cannot be written.
        """
        with self._named_errors():
            try:
                self._delete_removed()
            finally:
                self._manager.close()

    def _delete_removed(self) -> None:
        """Wait until all checkpoints are written, and delete those that made room for them."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            (self._manager.directory / REMOVED).rmtree(missing_ok=True)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and the storage library below it raise errors of many types
            kept = f"step {self.latest_step} is the latest complete one" if self.latest_step else "none is complete yet"
            raise CheckpointError(
                f"{self._manager.directory}: cannot write a checkpoint ({type(error).__name__}: {str(error)[:120]}); "
                f"{kept}. {ADVICE[in_bucket(self._manager.directory)]} and run the same command to resume"
            ) from error


def barrier_of_healthy_hosts() -> Callable[..., None]:
    """A barrier of all hosts, for Orbax's threads. A host whose write failed does not wait there.

    After a failed write Orbax waits, before it raises the error, for hosts that wait elsewhere for that write: both for
    20 minutes. Where the error is raised at once the program ends, and the others notice a lost host.
    """
    wait = ocp.multihost.get_barrier_sync_fn()

    def meet(*, key: str, timeout_ms: int) -> None:
        failed = sys.exc_info()[1] and threading.current_thread() is not threading.main_thread()
        if not failed:
            wait(key=key, timeout_ms=timeout_ms)

    return meet


def _complete_copied(directory: epath.Path) -> None:
    """Keep a run's checkpoints that were copied to a bucket."""
    if in_bucket(directory) and jax.process_index() == 0 and directory.is_dir():
        for step in directory.iterdir():
            complete_copied(step)


def _training_part(state: TrainState) -> dict:
    """What only training needs. The rest is in `variables`, where averaged parameters replace the trained ones."""
    part = {"step": state.step, "opt_state": state.opt_state}
    return part if state.ema_params is None else {**part, "params": state.params}
