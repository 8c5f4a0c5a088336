"""A model as a folder of a few files that is easy to share, and loading a model from wherever it is.

The folder holds model.safetensors, fasseg.json (what a checkpoint's metadata holds), config.json (the classes) and
preprocessor_config.json. A Mask2Former's has the names of transformers, which can load it too.
"""

import json
import os

from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.weights.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from fasseg_jax.weights.checkpoint_metadata import checkpoint_metadata, parse_metadata
from fasseg_jax.weights.hugging_face import (
    backbone_kind,
    is_hugging_face_folder,
    read_hugging_face,
    write_hugging_face,
)
from fasseg_jax.weights.hugging_face_config import describe_classes, describe_preprocessing, is_mask2former
from fasseg_jax.weights.remote import fetch
from fasseg_jax.weights.state_dict import Naming, convert_state_dict, to_state_dict
from fasseg_jax.weights.torch_files import read_state_dict, write_state_dict

__all__ = ["METADATA", "is_model_folder", "load_pretrained", "write_model_folder"]

METADATA, WEIGHTS = "fasseg.json", "model.safetensors"


def is_model_folder(path: str | Path) -> bool:
    """Whether the path is a folder that `write_model_folder` wrote."""
    return (Path(path) / METADATA).is_file()


def load_pretrained(reference: str | os.PathLike) -> Checkpoint:
    """Load a model.

    Args:
      reference: a checkpoint; the folder of a run, whose best checkpoint is taken; a folder that `write_model_folder`
        wrote; a Mask2Former of transformers; or the name of such a folder: hf://OWNER/NAME (see
        `fasseg_jax.weights.remote`).

    Raises:
      FileNotFoundError: there is no such folder, or the run has no checkpoint.
      RemoteError: it cannot be fetched.
      ValueError: the folder holds something else, or is damaged.
    """
    path = fetch(reference)
    try:
        if is_model_folder(path):
            return _read_model_folder(Path(path))
        if is_hugging_face_folder(path) and not backbone_kind(path):
            model = read_hugging_face(path)
            variables = convert_state_dict(model.state_dict, model.config.model, naming="hugging_face")
            return Checkpoint(model.config, variables, model.classes)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{reference}: {error}") from error
    return load_checkpoint(find_checkpoint(path)[0])


def _read_model_folder(folder: Path) -> Checkpoint:
    metadata = parse_metadata(folder / METADATA, (folder / METADATA).read_text(encoding="utf-8"))
    naming: Naming = "hugging_face" if is_mask2former(metadata.config.model) else "official"
    variables = convert_state_dict(read_state_dict(folder / WEIGHTS), metadata.config.model, naming=naming)
    return Checkpoint(metadata.config, variables, metadata.classes)


def write_model_folder(folder: str | Path, checkpoint: Checkpoint, overwrite: bool = False) -> None:
    """Write a model as such a folder.

    Args:
      folder: a directory that does not exist or is empty.
      checkpoint: of a whole model.
      overwrite: replace the files of an existing folder that this function wrote.

    Raises:
      FileExistsError: `folder` exists and must not be replaced.
      ValueError: the checkpoint holds only a backbone.
      WriteError: a file cannot be written.
    """
    folder = Path(folder)
    checkpoint.require_whole_model()
    if folder.is_file():
        raise FileExistsError(f"{folder}: is a file; name a directory")
    if folder.is_dir() and any(folder.iterdir()) and not (overwrite and is_model_folder(folder)):
        raise FileExistsError(f"{folder}: the directory is not empty; name another, or pass --overwrite for a model")
    config, classes = checkpoint.config, checkpoint.classes
    files = {METADATA: checkpoint_metadata(config, classes)}
    if is_mask2former(config.model):
        write_hugging_face(folder, config, checkpoint.variables, classes, overwrite)
    else:
        write_state_dict(folder / WEIGHTS, to_state_dict(checkpoint.variables, config.model), overwrite)
        files["preprocessor_config.json"] = describe_preprocessing(config, len(classes))
        files["config.json"] = {"architectures": ["FASeg"], "model_type": "fasseg", **describe_classes(classes)}
    for name, content in files.items():
        with write_atomically(folder / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
