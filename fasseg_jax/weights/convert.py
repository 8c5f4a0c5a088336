"""Convert weights: those of PyTorch programs into a checkpoint, and a checkpoint back into theirs."""

import time

import jax
from etils import epath
from ml_collections import ConfigDict

from fasseg_jax.data import data_classes
from fasseg_jax.data.classes import ClassTable, check_num_classes
from fasseg_jax.weights.checkpoint import load_checkpoint, save_checkpoint
from fasseg_jax.weights.hugging_face import is_hugging_face_folder, read_hugging_face, write_hugging_face
from fasseg_jax.weights.state_dict import convert_backbone, convert_state_dict, holds_whole_model, to_state_dict
from fasseg_jax.weights.torch_files import read_state_dict, write_state_dict

__all__ = ["convert"]


def convert(
    config: ConfigDict | None,
    weights: str,
    output: str,
    overwrite: bool,
    new_class_head: bool,
    hugging_face: bool = False,
) -> str:
    """Convert by the kind of `weights`; returns the summary to print."""
    begin = time.perf_counter()
    from_hugging_face = is_hugging_face_folder(weights)
    if epath.Path(weights).is_dir() and not from_hugging_face:
        if config is not None or new_class_head:
            raise ValueError(f"{weights}: a checkpoint is converted as it is: leave --config and --new_class_head out")
        lines = _write_weights(weights, output, overwrite, hugging_face)
    elif hugging_face:
        raise ValueError(f"{weights}: --hugging_face writes a checkpoint for transformers; make one of this first")
    else:
        read = _read_folder if from_hugging_face else _read_file
        lines = _write_checkpoint(output, overwrite, *read(config, weights, new_class_head))
    written = f"{output} in {time.perf_counter() - begin:.1f} s"
    lines = [("read", weights), *lines[:-1], ("written", written), lines[-1]]
    return "\n".join(f"{title:<11} {text}" for title, text in lines)


def _read_file(config: ConfigDict | None, weights: str, new_class_head: bool) -> tuple:
    """Configuration, variables, classes and contents of the checkpoint to write, from a file of weights."""
    if config is None:
        raise ValueError(f"{weights}: --config is needed, the configuration of the same model")
    classes = _classes_of(config)
    state_dict = read_state_dict(weights)
    if any(name.startswith("model.pixel_level_module.") for name in state_dict):
        raise ValueError(f"{weights}: a Mask2Former of transformers; give the folder with its config.json instead")
    try:
        if holds_whole_model(state_dict):
            return config, convert_state_dict(state_dict, config.model, new_class_head), classes, "model"
        if new_class_head:
            raise ValueError("holds a backbone alone, which has no class head: leave --new_class_head out")
        return config, convert_backbone(state_dict, config.model), classes, "backbone"
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error


def _read_folder(config: ConfigDict | None, weights: str, new_class_head: bool) -> tuple:
    """The same from a folder of transformers; --config, if given, decides all but the architecture."""
    model = read_hugging_face(weights)
    if config is None:
        if new_class_head:
            raise ValueError("--new_class_head needs --config, the configuration with the other classes")
        config, classes = model.config, model.classes
    else:
        classes = _classes_of(config)
        if differences := model.differences(config.model, but_classes=new_class_head):
            raise ValueError(f"{weights}: is another model than --config:\n  " + "\n  ".join(differences))
    try:
        variables = convert_state_dict(model.state_dict, config.model, new_class_head, "hugging_face")
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from error
    return config, variables, classes, "model"


def _write_checkpoint(
    output: str, overwrite: bool, config: ConfigDict, variables: dict, classes: ClassTable, contents: str
) -> list[tuple[str, str]]:
    save_checkpoint(output, config, variables, classes, contents, overwrite)
    next_step = {
        "model": f"python predict.py --checkpoint {output} --input PHOTO_OR_FOLDER --output RESULTS",
        "backbone": "a training can start from this backbone; it cannot predict by itself",
    }[contents]
    return [*_facts(contents, variables, classes, config.data.dataset), ("next", next_step)]


def _write_weights(weights: str, output: str, overwrite: bool, hugging_face: bool) -> list[tuple[str, str]]:
    checkpoint = load_checkpoint(weights)
    config, variables, classes = checkpoint.config, checkpoint.variables, checkpoint.classes
    if hugging_face:
        if checkpoint.contents != "model":
            raise ValueError(f"{weights}: holds a backbone alone; transformers needs a whole Mask2Former")
        write_hugging_face(output, config, variables, classes, overwrite)
        next_step = f'Mask2FormerForUniversalSegmentation.from_pretrained("{output}"), of transformers'
    else:
        write_state_dict(output, to_state_dict(variables, config.model), overwrite)
        next_step = "the official programs read this file" if output.endswith(".pth") else "safetensors reads this file"
    return [*_facts(checkpoint.contents, variables, classes, config.data.dataset), ("next", next_step)]


def _classes_of(config: ConfigDict) -> ClassTable:
    classes = data_classes(config.data)
    check_num_classes(classes, config.model.num_classes)
    return classes


def _facts(contents: str, variables: dict, classes: ClassTable, table: str) -> list[tuple[str, str]]:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return [
        (contents, f"{parameters / 1e6:.1f}M parameters"),
        ("classes", f"{len(classes)} ({table or ', '.join(classes.names[:3]) + ', ...'})"),
    ]
