"""Checkpoints: a directory, written by Orbax, with everything that prediction needs.

variables/   the Flax variables
metadata/    JSON: format, contents ("model" or "backbone"), configuration, class names and palette, number of samples
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.config import ConfigError, base_config, check_config, rename_old
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.runtime.files import Path, named_write_errors

__all__ = [
    "Checkpoint",
    "CheckpointMetadata",
    "Contents",
    "best_step",
    "checkpoint_metadata",
    "find_checkpoint",
    "load_checkpoint",
    "load_metadata",
    "save_checkpoint",
]

Contents = Literal["model", "backbone"]

FORMAT = 1  # of the metadata; every other number is refused
DATA_FILE_BYTES = 16 << 20  # Orbax collects that much in memory before it writes a file


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """A checkpoint without its variables; other attributes are those of `Checkpoint`.

    Attributes:
      samples: split -> number of the samples that the training had; empty if it is not known.
    """

    config: ConfigDict
    classes: ClassTable
    contents: Contents = "model"
    samples: Mapping[str, int] = dataclasses.field(default_factory=dict)


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
    directory = _absolute(path)
    if directory.is_file():
        raise FileExistsError(f"{path}: is a file; name a directory")
    if directory.exists() and any(directory.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{path}: the directory is not empty; name another or pass --overwrite")
        if not _metadata_file(directory).exists():
            raise FileExistsError(f"{path}: holds something other than a checkpoint and is not overwritten")
    # Saving ends before this function returns, so Orbax need not copy the arrays first.
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler()),
    )
    handler = ocp.CompositeCheckpointHandler(
        variables=ocp.PyTreeCheckpointHandler(type_handler_registry=handlers), metadata=ocp.JsonCheckpointHandler()
    )
    # Orbax and the storage library below it raise errors of many types.
    with named_write_errors(Path(path), (Exception,)):
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
            for _ in range(10):  # threads may still be writing to it
                shutil.rmtree(directory.with_name(f"{directory.name}.orbax-checkpoint-tmp"), ignore_errors=True)
                time.sleep(0.1)
            raise


def checkpoint_metadata(
    config: ConfigDict, classes: ClassTable, contents: Contents = "model", samples: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The metadata of a checkpoint, ready for JSON; the arguments are the attributes of `CheckpointMetadata`."""
    return {
        "format": FORMAT,
        "contents": contents,
        "config": config.to_dict(),
        "classes": {"names": classes.names, "palette": classes.palette.tolist()},
        "samples": dict(samples or {}),
    }


def find_checkpoint(path: str | Path) -> tuple[epath.Path, str]:
    """Find the checkpoint that a path names.

    Args:
      path: a checkpoint, or the folder of a run of train.py, which names the run's best checkpoint (see `best_step`).

    Returns:
      The checkpoint's folder, and the reason for the choice, in words (empty if there was no choice).

    Raises:
      FileNotFoundError: the run has no checkpoint yet.
    """
    run = epath.Path(path).expanduser()
    if not (run / "checkpoints").is_dir():
        return run, ""
    steps = sorted(
        int(step.name) for step in (run / "checkpoints").iterdir() if step.name.isascii() and step.name.isdigit()
    )
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
        raise _damaged(file, error) from error


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
        variables = _restore(_absolute(folder) / "variables")
    except Exception as error:  # Orbax and the storage library below it raise errors of many types
        raise _damaged(folder, error) from error
    return Checkpoint(metadata.config, variables, metadata.classes, metadata.contents)


def load_metadata(path: str | Path) -> CheckpointMetadata:
    """Read a checkpoint without its variables; raises as `load_checkpoint`."""
    directory = _absolute(path)
    if not directory.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not _metadata_file(directory).exists():
        hint = "; convert.py makes one from PyTorch weights" if directory.is_file() else ""
        if (directory / "config.json").exists():
            hint = f"; a model of transformers? convert it: python convert.py --weights {path} --output CHECKPOINT"
        raise ValueError(f"{path}: not a checkpoint directory of fasseg_jax, or an incomplete one{hint}")
    try:
        metadata = json.loads(_metadata_file(directory).read_text())
        if metadata["format"] == FORMAT:
            classes = metadata["classes"]
            if metadata["contents"] not in ("model", "backbone"):
                raise ValueError("contents is neither 'model' nor 'backbone'")
            if not isinstance(metadata["config"], dict) or not metadata["config"].get("model"):
                raise ValueError("config has no model")
            config = _complete_config(metadata["config"])
            check_config(config)
            return CheckpointMetadata(
                config=config,
                classes=ClassTable(tuple(classes["names"]), np.array(classes["palette"], np.uint8)),
                contents=metadata["contents"],
                samples={split: int(number) for split, number in metadata.get("samples", {}).items()},
            )
    except ConfigError as error:
        raise ValueError(f"{path}: the checkpoint's configuration is wrong: {error}") from error
    except Exception as error:  # a damaged file can raise anything
        raise _damaged(path, error) from error
    raise ValueError(
        f"{path}: written by a later version of fasseg_jax (format {str(metadata['format'])[:20]}); update it"
    )


def _damaged(path: str | Path, error: Exception) -> ValueError:
    reason = f"{type(error).__name__}: {' '.join(str(error)[:200].split())}"
    return ValueError(f"{path}: the checkpoint is damaged or incomplete ({reason})")


def _absolute(path: str | Path) -> epath.Path:
    return epath.Path(path).expanduser().resolve()


def _metadata_file(directory: epath.Path) -> epath.Path:
    return directory / "metadata" / "metadata"


def _restore(directory: epath.Path) -> dict[str, Any]:
    """The variables as NumPy arrays, whichever devices held them when they were saved."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(directory).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _complete_config(saved: dict[str, Any]) -> ConfigDict:
    """The configuration as JSON held it: lists become tuples, old names new ones, and missing fields take defaults."""
    config = ConfigDict(_tuples(saved))
    rename_old(config)
    return ConfigDict(_with_defaults(config.to_dict(), base_config().to_dict()))


def _tuples(value: Any) -> Any:
    """Lists as tuples: JSON has only lists, configurations have tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _with_defaults(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`saved`, filled up with the fields of `defaults`, except in a backbone of another kind, whose fields differ."""
    if saved.get("kind") != defaults.get("kind"):
        return saved
    filled = {
        name: _with_defaults(saved[name], value)
        if isinstance(value, dict) and name in saved
        else saved.get(name, value)
        for name, value in defaults.items()
    }
    return {**saved, **filled}
