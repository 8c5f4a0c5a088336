"""Mask2Former as Hugging Face's `transformers` keeps it: a folder with config.json and weights, read and written.

`transformers` itself is not needed. Models for instance and panoptic segmentation are the same network: their masks and
classes are summed to semantic scores like any others.
"""

import colorsys
import dataclasses
import json
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.runtime.files import Path
from fasseg_jax.weights.hugging_face_config import describe_model, describe_preprocessing, read_configuration
from fasseg_jax.weights.state_dict import to_state_dict
from fasseg_jax.weights.torch_files import read_state_dict, write_state_dict

__all__ = ["HuggingFaceModel", "is_hugging_face_folder", "read_hugging_face", "write_hugging_face"]

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in order of preference; a sharded one has an index beside it

# Of `config.model`: what a model without FASeg's parts does not use, and what concerns training and computing alone.
FREE = {
    *("dtype", "remat", "deformable_attention", "backbone.drop_path", "backbone.norm"),
    *("decoder.first_focus", "decoder.hrca_omega", "decoder.hrca_selection"),
}


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """What a folder holds.

    Attributes:
      config: Mask2Former of this architecture and test size; the recipe of training is the one for ADE20K.
      classes: names of config.json; colours of the built-in table of the same classes, else generated ones.
      state_dict: {name: array}, of transformers' names.
    """

    config: ConfigDict
    classes: ClassTable
    state_dict: dict[str, np.ndarray]

    def differences(self, model_config: ConfigDict, but_classes: bool = False) -> list[str]:
        """The fields, in words, in which another `config.model` is another network; perhaps `but_classes`."""
        mine, other = (dict(_fields(config)) for config in (self.config.model, model_config))
        return [
            f"config.model.{field} is {other.get(field)}, that of the folder {mine.get(field)}"
            for field in sorted(mine.keys() | other.keys())
            if field not in FREE
            and not (but_classes and field == "num_classes")
            and mine.get(field) != other.get(field)
        ]


def is_hugging_face_folder(path: str | Path) -> bool:
    """Whether this is a folder of a transformers model."""
    return (Path(path) / CONFIG).is_file()


def read_hugging_face(folder: str | Path) -> HuggingFaceModel:
    """Read a folder that `save_pretrained` wrote, or that was downloaded from the Hugging Face hub.

    Args:
      folder: with config.json, the weights (model.safetensors or pytorch_model.bin, or shards with an index), and
        perhaps preprocessor_config.json, whose test size is taken over.

    Raises:
      FileNotFoundError: a file is not there.
      ImportError: the weights are a .bin file, and PyTorch is not installed.
      ValueError: another model, an architecture that is not supported, or a damaged file; the message lists each field.
    """
    folder = Path(folder)
    description = _read_json(folder / CONFIG)
    if description.get("model_type") != "mask2former":
        raise ValueError(
            f"{folder / CONFIG}: model_type is {description.get('model_type')!r}; of transformers' models only "
            "'mask2former' is read"
        )
    preprocessing = _read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    try:
        config, names = read_configuration(description, preprocessing)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    classes, config.data.dataset = _class_table(names)
    return HuggingFaceModel(config, classes, _read_weights(folder))


def write_hugging_face(
    folder: str | Path, config: ConfigDict, variables: dict[str, Any], classes: ClassTable, overwrite: bool = False
) -> None:
    """Write a Mask2Former as `Mask2FormerForUniversalSegmentation.from_pretrained` and `AutoImageProcessor` read it.

    Args:
      folder: a directory that does not exist or is empty.
      config: the whole configuration of the model.
      variables: Flax variables of the whole model.
      classes: their names become `id2label`.
      overwrite: replace a Mask2Former of transformers that is there.

    Raises:
      FileExistsError: there is something at `folder` that must not be replaced.
      ValueError: the model is FASeg, or differs otherwise from what transformers has; the message lists each field.
    """
    folder = Path(folder)
    description = describe_model(config, classes)
    state_dict = to_state_dict(variables, config.model, "hugging_face")
    state_dict |= _unused(state_dict, config)
    if folder.is_file():
        raise FileExistsError(f"{folder}: is a file; name a directory")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{folder}: the directory is not empty; name another or pass --overwrite")
        if not is_hugging_face_folder(folder) or _read_json(folder / CONFIG).get("model_type") != "mask2former":
            raise FileExistsError(f"{folder}: holds something else than a Mask2Former of transformers; not overwritten")
        (folder / CONFIG).unlink()  # the folder counts as a model again only when it is complete
    folder.mkdir(parents=True, exist_ok=True)
    write_state_dict(folder / WEIGHTS[0], state_dict, overwrite)
    preprocessing = describe_preprocessing(config, len(classes))
    (folder / PREPROCESSOR).write_text(json.dumps(preprocessing, indent=2) + "\n")
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def _unused(state_dict: dict[str, np.ndarray], config: ConfigDict) -> dict[str, np.ndarray]:
    """What predictions do not depend on, but transformers would report as missing."""
    class_weights = np.ones(config.model.num_classes + 1, np.float32)  # of its loss
    class_weights[-1] = config.loss.no_object_weight
    unused = {"criterion.empty_weight": class_weights}
    for name, value in state_dict.items():
        if name.endswith(".running_mean"):
            unused[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
        elif ".hidden_states_norms.stage4." in name:  # version 5 has another norm of the last features, for classifiers
            initial = np.ones_like if name.endswith(".weight") else np.zeros_like
            unused[name.replace("hidden_states_norms.stage4", "swin.layernorm")] = initial(value)
    return unused


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: damaged or not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}, not an object of fields")
    return content


def _read_weights(folder: Path) -> dict[str, np.ndarray]:
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(index)
        if (folder / name).is_file():
            return read_state_dict(folder / name)
    raise FileNotFoundError(f"{folder}: holds no {' or '.join(WEIGHTS)}")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    file_of = _read_json(index).get("weight_map")
    # Files beside the index alone: a name with a folder in it would read from elsewhere.
    if not isinstance(file_of, dict) or any(Path(str(file)).name != file for file in file_of.values()):
        raise ValueError(f"{index}: has no weight_map from names to files beside it; download it again")
    shards = {file: read_state_dict(index.parent / file) for file in sorted(set(file_of.values()))}
    if lost := [name for name, file in file_of.items() if name not in shards[file]]:
        raise ValueError(f"{index}: {len(lost)} of the weights are not in the files, {lost[0]} in {file_of[lost[0]]}")
    return {name: shards[file][name] for name, file in file_of.items()}


def _fields(config: ConfigDict, prefix: str = "") -> list[tuple[str, Any]]:
    """All fields with their values, those of inner configurations with their path."""
    fields = []
    for name, value in config.items():
        fields += _fields(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [(prefix + name, value)]
    return fields


def _class_table(names: list[str]) -> tuple[ClassTable, str]:
    """Names with colours, and the name of the built-in table that these are from, "" where they are generated."""
    for table in ("ade20k", "cityscapes"):
        known = load_classes(table)
        if len(names) != len(known):
            continue
        # Synonyms follow the first name, which is not the same everywhere ("window", "windowpane").
        same = [name.split(",")[0].casefold() == other for name, other in zip(names, known.names, strict=True)]
        if np.mean(same) > 0.5:
            return ClassTable(tuple(names), known.palette), table
    # Hues by the golden ratio are far apart for neighbours; tone and strength alternate.
    tones = ((0.75, 0.95), (0.95, 0.65), (0.45, 0.85))
    colours = [colorsys.hsv_to_rgb(i * 0.618034 % 1, *tones[i % len(tones)]) for i in range(len(names))]
    return ClassTable(tuple(names), np.round(np.array(colours) * 255).astype(np.uint8)), ""
