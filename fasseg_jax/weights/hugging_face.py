"""Reads and writes Mask2Former as a folder of Hugging Face's `transformers`, config.json and weights; reads backbones.

`transformers` itself is not needed. Models for instance and panoptic segmentation are the same network; their masks and
classes give semantic scores in the same way.
"""

import colorsys
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import flat_fields
from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.runtime.files import Path, make_path, write_atomically
from fasseg_jax.weights.backbones import MODEL_TYPES, kind_of
from fasseg_jax.weights.hugging_face_config import (
    describe_model,
    describe_preprocessing,
    read_backbone,
    read_configuration,
)
from fasseg_jax.weights.safe_pickle import shorten
from fasseg_jax.weights.state_dict import to_state_dict
from fasseg_jax.weights.torch_files import read_state_dict, write_state_dict

__all__ = [
    "HuggingFaceModel",
    "backbone_kind",
    "is_hugging_face_folder",
    "read_hugging_face",
    "read_hugging_face_backbone",
    "write_hugging_face",
]

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference; shards have an index beside them

# Fields of `config.model` that concern only training and speed, or parts of FASeg that Mask2Former lacks.
NOT_COMPARED = {
    *("dtype", "remat", "deformable_attention", "backbone.drop_path", "backbone.norm"),
    *("decoder.first_focus", "decoder.hrca_omega", "decoder.hrca_selection"),
}


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """The contents of a folder.

    Attributes:
      config: the whole configuration: architecture and test size of the folder, training recipe for ADE20K.
      classes: names from config.json; colors from the built-in table of the same classes, otherwise generated.
      state_dict: {name: array}, with transformers' names.
    """

    config: ConfigDict
    classes: ClassTable
    state_dict: dict[str, np.ndarray]

    def differences(self, model_config: ConfigDict, except_classes: bool = False) -> list[str]:
        """List the fields that make another `config.model` another network; `except_classes` allows other classes."""
        theirs, ours = flat_fields(self.config.model), flat_fields(model_config)
        compared = (theirs.keys() | ours.keys()) - NOT_COMPARED - ({"num_classes"} if except_classes else set())
        return [
            f"config.model.{field} is {ours.get(field)}, but {theirs.get(field)} in the folder"
            for field in sorted(compared)
            if theirs.get(field) != ours.get(field)
        ]


def is_hugging_face_folder(path: str | Path) -> bool:
    """Whether the path is the folder of a model of transformers."""
    return (make_path(path) / CONFIG).is_file()


def backbone_kind(folder: str | Path) -> str | None:
    """The kind of backbone that the folder holds by itself; None if it holds something else."""
    return kind_of(_read_json(make_path(folder) / CONFIG).get("model_type"))


def read_hugging_face_backbone(folder: str | Path, backbone: ConfigDict) -> dict[str, np.ndarray]:
    """Read the weights of a folder that holds a backbone by itself, with or without a classifier.

    Args:
      folder: as of `read_hugging_face`; `backbone_kind` knows what it holds.
      backbone: `config.model.backbone` of the same network.

    Returns:
      {name: array}, with transformers' names.

    Raises:
      FileNotFoundError, ValueError: as `read_hugging_face`; also if the folder holds another network than `backbone`.
    """
    folder = make_path(folder)
    with _named_mistakes(folder):
        theirs = flat_fields(read_backbone(_read_json(folder / CONFIG)))
    ours = flat_fields(backbone)
    different = [
        f"config.model.backbone.{field} is {ours.get(field)}, but {theirs.get(field)} in the folder"
        for field in sorted(theirs.keys() | ours.keys())
        if f"backbone.{field}" not in NOT_COMPARED and theirs.get(field) != ours.get(field)
    ]
    if different:
        raise ValueError(f"{folder}: --config has another backbone:\n  " + "\n  ".join(different))
    return _read_weights(folder)


def read_hugging_face(folder: str | Path) -> HuggingFaceModel:
    """Read a folder that `save_pretrained` wrote, or a download from the Hugging Face hub.

    Args:
      folder: holds config.json, the weights (model.safetensors or pytorch_model.bin, or shards with an index), and
        optionally preprocessor_config.json, which has the test size.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: the folder holds another model, the architecture is not supported (the message lists each field), or
        a file is damaged.
    """
    folder = make_path(folder)
    description = _read_json(folder / CONFIG)
    if description.get("model_type") != "mask2former":
        raise ValueError(
            f"{folder / CONFIG}: model_type is {shorten(repr(description.get('model_type')))}; the models of "
            f"transformers that can be read are 'mask2former' and the backbones {', '.join(map(repr, MODEL_TYPES))}"
        )
    preprocessing = _read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    with _named_mistakes(folder):
        config, names = read_configuration(description, preprocessing)
    classes, config.data.dataset = _class_table(names)
    return HuggingFaceModel(config, classes, _read_weights(folder))


def write_hugging_face(
    folder: str | Path, config: ConfigDict, variables: dict[str, Any], classes: ClassTable, overwrite: bool = False
) -> None:
    """Write a Mask2Former for `Mask2FormerForUniversalSegmentation.from_pretrained` and `AutoImageProcessor`.

    Args:
      folder: a directory that does not exist or is empty.
      config: the whole configuration of the model.
      variables: Flax variables of the whole model.
      classes: their names become `id2label`.
      overwrite: replace an existing Mask2Former of transformers.

    Raises:
      FileExistsError: `folder` exists and must not be replaced.
      ValueError: the model is FASeg, or transformers does not support it for another reason; the message lists each
        field.
    """
    folder = make_path(folder)
    description = describe_model(config, classes)
    state_dict = to_state_dict(variables, config.model, "hugging_face")
    state_dict |= _unused(state_dict, config)
    if folder.is_file():
        raise FileExistsError(f"{folder}: is a file; name a directory")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{folder}: the directory is not empty; name another or pass --overwrite")
        if not is_hugging_face_folder(folder) or _read_json(folder / CONFIG).get("model_type") != "mask2former":
            raise FileExistsError(
                f"{folder}: holds something other than a Mask2Former of transformers and is not overwritten"
            )
        (folder / CONFIG).unlink()  # written last, so the folder is a model only when it is complete
    write_state_dict(folder / WEIGHTS[0], state_dict, overwrite)
    for name, content in {PREPROCESSOR: describe_preprocessing(config, len(classes)), CONFIG: description}.items():
        with write_atomically(folder / name) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")


def _unused(state_dict: dict[str, np.ndarray], config: ConfigDict) -> dict[str, np.ndarray]:
    """Entries without influence on predictions, which transformers would otherwise report as missing."""
    class_weights = np.ones(config.model.num_classes + 1, np.float32)  # of the loss
    class_weights[-1] = config.loss.no_object_weight
    unused = {"criterion.empty_weight": class_weights}
    for name, value in state_dict.items():
        if name.endswith(".running_mean"):
            unused[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
        elif (
            ".hidden_states_norms.stage4." in name and config.model.backbone.kind == "swin"
        ):  # in version 5 a classifier's norm of the last features
            initial = np.ones_like if name.endswith(".weight") else np.zeros_like
            unused[name.replace("hidden_states_norms.stage4", "swin.layernorm")] = initial(value)
    return unused


@contextlib.contextmanager
def _named_mistakes(folder: Path) -> Iterator[None]:
    """Name the folder in errors about its JSON files."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    except (TypeError, AttributeError, KeyError, OverflowError) as error:
        reason = f"{type(error).__name__}: {shorten(error)}"
        raise ValueError(f"{folder}: its JSON files have values of the wrong kind ({reason})") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged or not JSON ({shorten(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}, not an object of fields")
    return content


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return read_state_dict(index)
        if (folder / name).is_file():
            return read_state_dict(folder / name)
    raise FileNotFoundError(f"{folder}: holds no {' or '.join(WEIGHTS)}")


def _class_table(names: list[str]) -> tuple[ClassTable, str]:
    """The classes, and the built-in table that their colors come from; "" if the colors are generated."""
    for table in ("ade20k", "cityscapes"):
        known = load_classes(table)
        if len(names) != len(known):
            continue
        # Only first names count, as synonyms follow them; and some of them differ ("window", "windowpane").
        same = [name.split(",")[0].casefold() == other for name, other in zip(names, known.names, strict=True)]
        if np.mean(same) > 0.5:
            return ClassTable(tuple(names), known.palette), table
    # Steps by the golden ratio give neighbors distant hues; saturation and value alternate.
    saturations_and_values = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))
    colors = [
        colorsys.hsv_to_rgb(i * 0.618034 % 1, *saturations_and_values[i % len(saturations_and_values)])
        for i in range(len(names))
    ]
    return ClassTable(tuple(names), np.round(np.array(colors) * 255).astype(np.uint8)), ""
