"""Checkpoints: a directory, written by Orbax, with all that prediction needs.

variables/   the Flax variables
metadata/    JSON: format, contents ("model" or "backbone"), configuration, class names and palette
"""

import dataclasses
import json
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.config import base_config
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.runtime.files import Path

__all__ = [
    "Checkpoint",
    "checkpoint_metadata",
    "find_checkpoint",
    "load_checkpoint",
    "load_metadata",
    "save_checkpoint",
]

FORMAT = 1  # of the metadata; a program that does not know a number refuses it
DATA_FILE_BYTES = 16 << 20  # data that wait in memory until a file is full


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
      config: the whole configuration; its sequences are tuples. Fields that the program did not have yet when the
        checkpoint was written have the base configuration's values.
      variables: {"params": ...} and, with batch norm, "batch_stats"; NumPy arrays.
      classes: names and palette of the K classes.
      contents: "model", or "backbone" where `variables` holds the backbone's alone, from which a training can start.
    """

    config: ConfigDict
    variables: dict[str, Any] | None
    classes: ClassTable
    contents: Literal["model", "backbone"] = "model"


def save_checkpoint(
    path: str | Path,
    config: ConfigDict,
    variables: dict[str, Any],
    classes: ClassTable,
    contents: Literal["model", "backbone"] = "model",
    overwrite: bool = False,
) -> None:
    """Write a checkpoint; it appears under its name only when it is complete.

    Args:
      path: a directory that does not exist or is empty; it may be in a bucket ("gs://...").
      config: the whole configuration; lists in it come back as tuples.
      variables: Flax variables, NumPy or JAX arrays.
      classes: names and palette of the K classes.
      contents: what `variables` holds, the whole model or its backbone alone.
      overwrite: replace a checkpoint that is there; it is removed first. A directory of
        anything else is never replaced.

    Raises:
      FileExistsError: there is something at `path` that must not be replaced.
    """
    directory = _absolute(path)
    if directory.is_file():
        raise FileExistsError(f"{path}: is a file; name a directory")
    if directory.exists() and any(directory.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{path}: the directory is not empty; name another or pass --overwrite")
        if not _metadata_file(directory).exists():
            raise FileExistsError(f"{path}: holds something else than a checkpoint and is not overwritten")
    # Saving ends before this function does, so that Orbax need not copy the arrays first.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.CompositeCheckpointHandler(
        variables=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers), metadata=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            directory,
            args=ocp.args.Composite(
                variables=ocp.args.PyTreeSave(variables, ocdbt_target_data_file_size=DATA_FILE_BYTES),
                metadata=ocp.args.JsonSave(checkpoint_metadata(config, classes, contents)),
            ),
            force=True,  # whatever must be kept was refused above
        )


def checkpoint_metadata(
    config: ConfigDict, classes: ClassTable, contents: Literal["model", "backbone"] = "model"
) -> dict[str, Any]:
    """What a checkpoint says of itself, as JSON holds it."""
    return {
        "format": FORMAT,
        "contents": contents,
        "config": config.to_dict(),
        "classes": {"names": classes.names, "palette": classes.palette.tolist()},
    }


def find_checkpoint(path: str | Path) -> tuple[epath.Path, str]:
    """The checkpoint that a path names.

    Args:
      path: a checkpoint; or the folder of a run of train.py, of which it is the best by mean IoU, or the latest if
        none was evaluated.

    Returns:
      its folder, and how it was chosen, in words (empty if there was no choice).

    Raises:
      FileNotFoundError: the run holds no checkpoint.
    """
    run = epath.Path(path).expanduser()
    if not (run / "checkpoints").is_dir():
        return run, ""
    steps = sorted(int(step.name) for step in (run / "checkpoints").iterdir() if step.name.isdigit())
    if not steps:
        raise FileNotFoundError(f"{run}: this run has no checkpoint yet")
    folders = {step: run / "checkpoints" / str(step) for step in steps}
    files = {step: folder / "metrics" / "metrics" for step, folder in folders.items()}
    evaluated = {step: json.loads(file.read_text())["mean_iou"] for step, file in files.items() if file.exists()}
    if not evaluated:
        return folders[steps[-1]], " (the run's latest; none was evaluated)"
    best = max(evaluated, key=evaluated.get)
    return folders[best], f" (the run's best, mIoU {100 * evaluated[best]:.2f} while it was trained)"


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
      path: a directory that `save_checkpoint` wrote, or that of a run, for the one that `find_checkpoint` chooses.

    Raises:
      FileNotFoundError: no such directory, or a run without a checkpoint.
      ValueError: not a checkpoint of this program, of a later format, or damaged.
    """
    path, _ = find_checkpoint(path)
    metadata = load_metadata(path)
    try:
        return dataclasses.replace(metadata, variables=_restore(_absolute(path) / "variables"))
    except Exception as error:  # Orbax and the storage library below it raise errors of many types
        raise _damaged(path, error) from error


def load_metadata(path: str | Path) -> Checkpoint:
    """Read a checkpoint without its variables, which are None; raises as `load_checkpoint`."""
    directory = _absolute(path)
    if not directory.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not _metadata_file(directory).exists():
        hint = "; PyTorch weights become one by convert.py" if directory.is_file() else ""
        raise ValueError(f"{path}: not a checkpoint directory of fasseg_jax, or an incomplete one{hint}")
    try:
        metadata = json.loads(_metadata_file(directory).read_text())
        if metadata["format"] == FORMAT:
            classes = metadata["classes"]
            return Checkpoint(
                config=ConfigDict(_with_defaults(_tuples(metadata["config"]), base_config().to_dict())),
                variables=None,
                classes=ClassTable(tuple(classes["names"]), np.array(classes["palette"], np.uint8)),
                contents=metadata["contents"],
            )
    except Exception as error:  # whatever a damaged file makes of it
        raise _damaged(path, error) from error
    raise ValueError(f"{path}: written by a later version of fasseg_jax (format {metadata['format']}); update it")


def _damaged(path: str | Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {str(error)[:200]}"
    return ValueError(f"{path}: the checkpoint is damaged or incomplete ({reason})")


def _absolute(path: str | Path) -> epath.Path:
    return epath.Path(path).expanduser().resolve()


def _metadata_file(directory: epath.Path) -> epath.Path:
    return directory / "metadata" / "metadata"


def _restore(directory: epath.Path) -> dict[str, Any]:
    """As NumPy arrays, whichever devices they were on when they were saved."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(directory).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _tuples(value: Any) -> Any:
    """JSON has lists only, configurations have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _with_defaults(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`saved`, with the fields of `defaults` that are absent from it; a backbone of another kind has others."""
    if saved.get("kind") != defaults.get("kind"):
        return saved
    filled = {
        name: _with_defaults(saved[name], value)
        if isinstance(value, dict) and name in saved
        else saved.get(name, value)
        for name, value in defaults.items()
    }
    return {**saved, **filled}
