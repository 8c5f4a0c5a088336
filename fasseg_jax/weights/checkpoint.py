"""Checkpoints: a directory, written by Orbax, with everything that prediction needs.

variables/   the Flax variables
metadata/    JSON: format, contents ("model" or "backbone"), configuration, class names and palette, number of samples
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.runtime.files import Path, in_bucket, make_path, named_write_errors, remove_folder
from fasseg_jax.weights.checkpoint_metadata import (
    Contents,
    absolute_path,
    checkpoint_metadata,
    complete_steps,
    damaged,
    load_metadata,
    metadata_file,
)

__all__ = [
    "Checkpoint",
    "best_step",
    "find_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

DATA_FILE_BYTES = 16 << 20  # Orbax collects that much in memory before it writes a file


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
      config: the whole configuration; its sequences are tuples. A field that is newer than the checkpoint has the base
        configuration's value.
      variables: {"params": ...} and, with batch norm, "batch_stats"; NumPy arrays.
      classes: names and palette of the K classes.
      contents: "model", or "backbone" if `variables` holds only a backbone, from which a training can start.
    """

    config: ConfigDict
    variables: dict[str, Any]
    classes: ClassTable
    contents: Contents = "model"

    def require_whole_model(self, name: str | Path = "the checkpoint") -> None:
        """Raise `ValueError` if the checkpoint, `name` in the message, holds only a backbone, or another model."""
        if self.contents != "model":
            raise ValueError(
                f"{name}: holds only a backbone, from which a training can start; a whole model is needed here"
            )
        if differences := _differences(self.variables["params"], self.config.model):
            raise ValueError(
                f"{name}: its weights are not those of its configuration; was its metadata edited? "
                + "; ".join(differences)
            )


def _differences(params: Mapping[str, Any], model: ConfigDict) -> list[str]:
    """The fields of `config.model` that contradict the weights, as far as a few shapes show them."""
    decoder, pixel_decoder = params.get("decoder", {}), params.get("pixel_decoder", {})
    shown = {
        "num_classes": (np.shape(decoder.get("class_embed", {}).get("bias", ())), (model.num_classes + 1,)),
        "decoder.num_queries": (np.shape(decoder.get("query_feat", ()))[:1], (model.decoder.num_queries,)),
        "hidden_dim": (np.shape(decoder.get("query_feat", ()))[1:], (model.hidden_dim,)),
        "decoder.num_layers": (_count(decoder, "layer_"), (model.decoder.num_layers,)),
        "pixel_decoder.num_layers": (_count(pixel_decoder, "encoder_"), (model.pixel_decoder.num_layers,)),
    }
    return [f"config.model.{field} does not fit" for field, (theirs, ours) in shown.items() if theirs != ours]


def _count(params: Mapping[str, Any], prefix: str) -> tuple[int]:
    return (sum(name.removeprefix(prefix).isdigit() for name in params if name.startswith(prefix)),)


def save_checkpoint(
    path: str | Path,
    config: ConfigDict,
    variables: dict[str, Any],
    classes: ClassTable,
    contents: Contents = "model",
    overwrite: bool = False,
) -> None:
    """Write a checkpoint; it appears under its name only when it is complete.

    Args:
      path: a directory that does not exist or is empty; it may be in a bucket ("gs://...").
      config: the whole configuration; its lists are read back as tuples.
      variables: Flax variables, NumPy or JAX arrays.
      classes: names and palette of the K classes.
      contents: whether `variables` holds a whole model or only its backbone.
      overwrite: replace an existing checkpoint, which is removed first. A directory of anything else is never replaced.

    Raises:
      FileExistsError: `path` exists and must not be replaced.
      WriteError: the checkpoint cannot be written.
    """
    directory = absolute_path(path)
    if directory.is_file():
        raise FileExistsError(f"{path}: is a file; name a directory")
    if directory.exists() and any(directory.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{path}: the directory is not empty; name another or pass --overwrite")
        if not metadata_file(directory).exists():
            raise FileExistsError(f"{path}: holds something other than a checkpoint and is not overwritten")
    import orbax.checkpoint as ocp  # slow to import, and many programs neither save nor load

    # Saving ends before this function returns, so Orbax need not copy the arrays first.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.CompositeCheckpointHandler(
        variables=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers), metadata=ocp.JsonCheckpointHandler()
    )
    # Orbax and the storage library below it raise errors of many types.
    with named_write_errors(make_path(path), (Exception,)):
        try:
            with ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(
                    directory,
                    args=ocp.args.Composite(
                        variables=ocp.args.PyTreeSave(variables, ocdbt_target_data_file_size=DATA_FILE_BYTES),
                        metadata=ocp.args.JsonSave(checkpoint_metadata(config, classes, contents)),
                    ),
                    force=True,  # the checks above refused whatever must be kept
                )
        except Exception:
            if in_bucket(directory):
                with contextlib.suppress(OSError):
                    remove_folder(directory)
                raise
            for _ in range(10):  # threads may still be writing to it
                shutil.rmtree(directory.with_name(f"{directory.name}.orbax-checkpoint-tmp"), ignore_errors=True)
                time.sleep(0.1)
            raise


def find_checkpoint(path: str | Path) -> tuple[epath.Path, str]:
    """Find the checkpoint that a path names.

    Args:
      path: a checkpoint, or the folder of a run of train.py, which names the run's best checkpoint (see `best_step`).

    Returns:
      The checkpoint's folder, and the reason for the choice, in words (empty if there was no choice).

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
    """
    run = epath.Path(make_path(path)).expanduser()
    if not (run / "checkpoints").is_dir():
        return run, ""
    steps = complete_steps(run / "checkpoints")
    if not steps:
        raise FileNotFoundError(f"{run}: this run has no checkpoint yet")
    folders = {step: run / "checkpoints" / str(step) for step in steps}
    mean_ious = {step: _mean_iou(folder) for step, folder in folders.items()}
    best = best_step(mean_ious)
    mean_iou = mean_ious[best]
    if mean_iou is None:
        return folders[best], " (the run's latest; none was evaluated)"
    return folders[best], f" (the run's best, mIoU {100 * mean_iou:.2f} during training)"


def _mean_iou(folder: epath.Path) -> float | None:
    file = folder / "metrics" / "metrics"
    if not file.exists():
        return None
    try:
        return float(json.loads(file.read_text())["mean_iou"])
    except Exception as error:  # a damaged file can raise anything
        raise damaged(file, error) from error


def best_step(mean_ious: Mapping[int, float | None]) -> int:
    """The step of a run's best checkpoint, given the mean IoU of each checkpoint, None if it was not evaluated.

    The best one has the highest mean IoU; if none was evaluated, it is the latest one.
    """
    evaluated = {step: mean_iou for step, mean_iou in mean_ious.items() if mean_iou is not None}
    return max(evaluated, key=evaluated.__getitem__) if evaluated else max(mean_ious)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
      path: a directory that `save_checkpoint` wrote, or the folder of a run, of which `find_checkpoint` chooses one.

    Raises:
      FileNotFoundError: there is no such directory, or the run has no checkpoint.
      ValueError: the directory is not a checkpoint of this program, has a later format, or is damaged.
    """
    folder, _ = find_checkpoint(path)
    metadata = load_metadata(folder)
    try:
        variables = _restore(absolute_path(folder) / "variables")
    except Exception as error:  # Orbax and the storage library below it raise errors of many types
        raise damaged(folder, error) from error
    return Checkpoint(metadata.config, variables, metadata.classes, metadata.contents)


def _restore(directory: epath.Path) -> dict[str, Any]:
    """The variables as NumPy arrays, whichever devices held them when they were saved."""
    import orbax.checkpoint as ocp

    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(directory).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
