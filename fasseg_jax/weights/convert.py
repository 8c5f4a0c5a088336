"""Convert weights: those of PyTorch programs to a checkpoint, and a checkpoint to weights of those programs."""

import logging
import time

import jax
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.data import data_classes
from fasseg_jax.data.classes import ClassTable, check_num_classes
from fasseg_jax.runtime.command_line import other_program
from fasseg_jax.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fasseg_jax.weights.fitting import remove_prefix
from fasseg_jax.weights.hugging_face import (
    backbone_kind,
    is_hugging_face_folder,
    read_hugging_face,
    read_hugging_face_backbone,
    write_hugging_face,
)
from fasseg_jax.weights.pretrained import is_model_folder, load_pretrained
from fasseg_jax.weights.remote import fetch
from fasseg_jax.weights.safe_pickle import shorten
from fasseg_jax.weights.state_dict import convert_backbone, convert_state_dict, holds_whole_model, to_state_dict
from fasseg_jax.weights.torch_files import read_state_dict, write_state_dict

__all__ = ["convert"]

NO_CLASS_HEAD = "holds only a backbone, which has no class head; leave out --new_class_head"

logger = logging.getLogger(__name__)


def convert(
    config: ConfigDict | None,
    weights: str,
    output: str,
    *,
    overwrite: bool = False,
    new_class_head: bool = False,
    hugging_face: bool = False,
) -> str:
    """Convert weights; `weights` decides the direction.

    Args:
      config: the whole configuration of the same model; a file needs it, a checkpoint has its own.
      weights: a file of PyTorch weights, a folder of transformers, a folder that `fasseg push` wrote, or a checkpoint;
        or the name of such a file or folder, which is fetched first (see `fasseg_jax.weights.remote`).
      output: the checkpoint to write or, from a checkpoint, the .safetensors or .pth file.
      overwrite: replace an existing `output` of the same kind.
      new_class_head: to a checkpoint: initialize a new class head, for other classes.
      hugging_face: from a checkpoint: write a folder of transformers.

    Returns:
      A summary to print.

    Raises:
      FileExistsError: `output` exists and must not be replaced.
      ImportError, OSError: `weights` cannot be read.
      ValueError: the weights do not fit the model, or the options do not go together.
    """
    begin = time.perf_counter()
    name, weights = weights, fetch(weights)
    shared = is_model_folder(weights)
    from_hugging_face = is_hugging_face_folder(weights) and not shared
    from_checkpoint = not from_hugging_face and not shared and epath.Path(weights).is_dir()
    if (from_checkpoint or shared) and (config is not None or new_class_head):
        raise ValueError(f"{name}: a checkpoint needs no options; leave out --config and --new_class_head")
    if hugging_face and not from_checkpoint:
        raise ValueError(f"{weights}: --hugging_face needs a checkpoint; convert this to one first")

    if from_checkpoint:
        checkpoint = load_checkpoint(weights)
        next_step = _write_weights(checkpoint, weights, output, overwrite, hugging_face)
    elif shared:
        checkpoint = load_pretrained(weights)
        next_step = _write_checkpoint(checkpoint, output, overwrite)
    else:
        read = _read_hugging_face if from_hugging_face else _read_file
        checkpoint = read(config, weights, new_class_head)
        next_step = _write_checkpoint(checkpoint, output, overwrite)
    written = f"{output} in {time.perf_counter() - begin:.1f} s"
    lines = [("read", name), *_describe(checkpoint), ("written", written), ("next", next_step)]
    return "\n".join(f"{title:<11} {text}" for title, text in lines)


def _read_file(config: ConfigDict | None, weights: str, new_class_head: bool) -> Checkpoint:
    """The checkpoint to write, from a file of weights."""
    if config is None:
        raise ValueError(f"{weights}: --config is needed: the configuration of the same model")
    classes = _classes_of(config)
    state_dict = read_state_dict(weights)
    if any(name.startswith("model.pixel_level_module.") for name in state_dict):
        raise ValueError(f"{weights}: a Mask2Former of transformers; give the folder with its config.json instead")
    try:
        state_dict, prefix = remove_prefix(state_dict)
        if prefix:
            logger.warning("%s: the prefix %r of the names is removed.", weights, shorten(prefix))
        if holds_whole_model(state_dict):
            return Checkpoint(config, convert_state_dict(state_dict, config.model, new_class_head), classes, "model")
        if new_class_head:
            raise ValueError(NO_CLASS_HEAD)
        return Checkpoint(config, convert_backbone(state_dict, config.model), classes, "backbone")
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def _read_hugging_face(config: ConfigDict | None, weights: str, new_class_head: bool) -> Checkpoint:
    """The checkpoint to write, from a folder of transformers. A given `config` must have the same architecture."""
    if backbone_kind(weights):
        return _read_hugging_face_backbone(config, weights, new_class_head)
    model = read_hugging_face(weights)
    if config is None:
        if new_class_head:
            raise ValueError("--new_class_head needs --config, the configuration with the other classes")
        config, classes = model.config, model.classes
    else:
        classes = _classes_of(config)
        if differences := model.differences(config.model, except_classes=new_class_head):
            raise ValueError(f"{weights}: --config has another model:\n  " + "\n  ".join(differences))
    try:
        variables = convert_state_dict(model.state_dict, config.model, new_class_head, "hugging_face")
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    return Checkpoint(config, variables, classes, "model")


def _read_hugging_face_backbone(config: ConfigDict | None, weights: str, new_class_head: bool) -> Checkpoint:
    """The checkpoint to write, from a folder of transformers that holds only a backbone."""
    if config is None:
        raise ValueError(
            f"{weights}: holds only a backbone; --config is needed, the recipe of the model that it is for"
        )
    if new_class_head:
        raise ValueError(f"{weights}: {NO_CLASS_HEAD}")
    state_dict = read_hugging_face_backbone(weights, config.model.backbone)
    try:
        state_dict, _ = remove_prefix(state_dict)
        return Checkpoint(config, convert_backbone(state_dict, config.model), _classes_of(config), "backbone")
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def _write_checkpoint(checkpoint: Checkpoint, output: str, overwrite: bool) -> str:
    """Write a checkpoint; returns what to do next with it."""
    save_checkpoint(output, checkpoint.config, checkpoint.variables, checkpoint.classes, checkpoint.contents, overwrite)
    if checkpoint.contents == "backbone":
        return "a training can start from this backbone; it cannot predict by itself"
    return f"{other_program('predict')} --checkpoint {output} --input PHOTO_OR_FOLDER --output RESULTS"


def _write_weights(checkpoint: Checkpoint, weights: str, output: str, overwrite: bool, hugging_face: bool) -> str:
    """Write the weights of a checkpoint for another program; returns what to do next with them."""
    if hugging_face:
        checkpoint.require_whole_model(weights)
        write_hugging_face(output, checkpoint.config, checkpoint.variables, checkpoint.classes, overwrite)
        return f'Mask2FormerForUniversalSegmentation.from_pretrained("{output}"), of transformers'
    write_state_dict(output, to_state_dict(checkpoint.variables, checkpoint.config.model), overwrite)
    return "the official programs read this file" if output.endswith(".pth") else "safetensors reads this file"


def _classes_of(config: ConfigDict) -> ClassTable:
    classes = data_classes(config.data)
    check_num_classes(classes, config.model.num_classes)
    return classes


def _describe(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Title and text of the summary's lines about a checkpoint."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.variables["params"]))
    names = checkpoint.classes.names
    table = checkpoint.config.data.dataset or f"{', '.join(names[:3])}, ..."
    return [(checkpoint.contents, f"{parameters / 1e6:.1f}M parameters"), ("classes", f"{len(names)} ({table})")]
