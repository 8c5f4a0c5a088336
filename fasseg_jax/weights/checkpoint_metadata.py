"""The metadata of checkpoints: JSON that names the network of the variables, and the classes."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.config import ConfigError, base_config, check_config, rename_old
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.runtime.command_line import other_program
from fasseg_jax.runtime.files import Path, in_bucket, make_path

__all__ = [
    "CheckpointMetadata",
    "Contents",
    "absolute_path",
    "checkpoint_metadata",
    "complete_copied",
    "complete_steps",
    "damaged",
    "is_complete",
    "load_metadata",
    "metadata_file",
    "parse_metadata",
]

Contents = Literal["model", "backbone"]

DONE = "commit_success.txt"  # Orbax's name
FORMAT = 1  # of the metadata; every other number is refused


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
    """A checkpoint without its variables; the other attributes are those of `Checkpoint`.

    Attributes:
      samples: split -> number of the samples that the training had; empty if it is not known.
      fingerprints: split -> `Source.fingerprint` of these samples; likewise.
    """

    config: ConfigDict
    classes: ClassTable
    contents: Contents = "model"
    samples: Mapping[str, int] = dataclasses.field(default_factory=dict)
    fingerprints: Mapping[str, str] = dataclasses.field(default_factory=dict)


def checkpoint_metadata(
    config: ConfigDict,
    classes: ClassTable,
    contents: Contents = "model",
    samples: Mapping[str, int] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The metadata of a checkpoint, ready for JSON; the arguments are the attributes of `CheckpointMetadata`."""
    return {
        "format": FORMAT,
        "contents": contents,
        "config": config.to_dict(),
        "classes": {"names": classes.names, "palette": classes.palette.tolist()},
        "samples": dict(samples or {}),
        "fingerprints": dict(fingerprints or {}),
    }


def load_metadata(path: str | Path) -> CheckpointMetadata:
    """Read a checkpoint without its variables; raises as `load_checkpoint`."""
    directory = absolute_path(path)
    if not directory.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    if not metadata_file(directory).exists():
        convert = other_program("convert")
        hint = f"; {convert} makes one from PyTorch weights" if directory.is_file() else ""
        if (directory / "config.json").exists():
            hint = f"; a model of transformers? convert it: {convert} --weights {path} --output CHECKPOINT"
        raise ValueError(f"{path}: not a checkpoint directory of fasseg_jax, or an incomplete one{hint}")
    if not is_complete(directory):
        raise ValueError(f"{path}: an incomplete checkpoint; its writing was interrupted")
    try:
        text = metadata_file(directory).read_text()
    except Exception as error:  # of the storage
        raise damaged(path, error) from error
    return parse_metadata(path, text)


def parse_metadata(path: str | Path, text: str) -> CheckpointMetadata:
    """Read the JSON of `checkpoint_metadata`; `path` names it in messages.

    Raises:
      ValueError: it is damaged, holds a configuration that is not allowed, or has a later format.
    """
    try:
        metadata = json.loads(text)
        if metadata["format"] == FORMAT:
            if metadata["contents"] not in ("model", "backbone"):
                raise ValueError("contents is neither 'model' nor 'backbone'")
            if not isinstance(metadata["config"], dict) or not metadata["config"].get("model"):
                raise ValueError("config has no model")
            config = _complete_config(metadata["config"])
            check_config(config)
            return CheckpointMetadata(
                config=config,
                classes=_classes(metadata["classes"]),
                contents=metadata["contents"],
                samples=_samples(metadata.get("samples", {})),
                fingerprints=_fingerprints(metadata.get("fingerprints", {})),
            )
    except ConfigError as error:
        raise ValueError(f"{path}: the checkpoint's configuration is wrong: {error}") from error
    except Exception as error:  # a damaged file can raise anything
        raise damaged(path, error) from error
    raise ValueError(
        f"{path}: written by a later version of fasseg_jax (format {str(metadata['format'])[:20]}); update it"
    )


def _classes(saved: dict[str, Any]) -> ClassTable:
    names, palette = saved["names"], np.array(saved["palette"])
    if not isinstance(names, list):
        raise ValueError("the names of classes are no list")
    if palette.dtype.kind not in "iu" or not np.array_equal(palette, palette.clip(0, 255)):
        raise ValueError("the palette has other numbers than 0 to 255")
    return ClassTable(tuple(names), palette.astype(np.uint8))


def _samples(saved: Any) -> dict[str, int]:
    if not isinstance(saved, dict) or not all(type(number) is int and number >= 0 for number in saved.values()):
        raise ValueError("samples are not numbers of samples")
    return saved


def _fingerprints(saved: Any) -> dict[str, str]:
    if not isinstance(saved, dict) or not all(isinstance(text, str) for text in saved.values()):
        raise ValueError("fingerprints are no texts")
    return saved


def damaged(path: str | Path, error: Exception) -> ValueError:
    """What to raise for a file that cannot be read, `path` and the reason in one line."""
    reason = f"{type(error).__name__}: {' '.join(str(error)[:200].split())}"
    return ValueError(f"{path}: the checkpoint is damaged or incomplete ({reason})")


def absolute_path(path: str | Path) -> epath.Path:
    """The path that Orbax wants; it may be in a bucket."""
    return epath.Path(make_path(path)).expanduser().resolve()


def is_complete(directory: epath.Path | Path) -> bool:
    """Whether a checkpoint was written to its end. On a local disk each is: it gets its name only then.

    In a bucket Orbax writes `DONE` at the end. A checkpoint that was copied there from a disk lacks it; its time of
    completion, in another file, shows that it was complete.
    """
    return not in_bucket(directory) or (directory / DONE).exists() or _has_time(directory)


def complete_steps(checkpoints: epath.Path | Path) -> list[int]:
    """The steps of a run's complete checkpoints, each a folder in `checkpoints`, in their order."""
    steps = (path for path in checkpoints.iterdir() if path.name.isascii() and path.name.isdigit())
    return sorted(int(path.name) for path in steps if is_complete(path))


def complete_copied(directory: epath.Path) -> None:
    """Mark a complete checkpoint that was copied to a bucket, before Orbax takes it for incomplete and removes it."""
    if in_bucket(directory) and not (directory / DONE).exists() and _has_time(directory):
        (directory / DONE).write_text("copied from a disk")


def _has_time(directory: epath.Path | Path) -> bool:
    try:
        return bool(json.loads((directory / "_CHECKPOINT_METADATA").read_text()).get("commit_timestamp_nsecs"))
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def metadata_file(directory: epath.Path) -> epath.Path:
    """The file that every checkpoint has."""
    return directory / "metadata" / "metadata"


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
