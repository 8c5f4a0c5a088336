"""Translates the configuration of transformers' Mask2Former to ours, and ours to theirs.

Their config.json has the architecture and the names of the classes, their preprocessor_config.json the test size.
FASeg's own parts, HRCA and dynamic positional queries, have no counterpart there.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import base_config, use_mask2former
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.data.preprocessing import PIXEL_MEAN, PIXEL_STD
from fasseg_jax.models.backbones import BACKBONES
from fasseg_jax.weights.backbones import FOREIGN_BACKBONES, MODEL_TYPES, kind_of
from fasseg_jax.weights.backbones.foreign import STAGES, check_fixed

__all__ = [
    "describe_classes",
    "describe_model",
    "describe_preprocessing",
    "is_mask2former",
    "read_backbone",
    "read_configuration",
]

# Fields of config.json with the only value that the network here supports. Absent fields have these values there, too.
FIXED = {
    "pre_norm": False,
    "activation_function": "relu",
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}


# Fields that are whole numbers, or lists of one for each stage.
COUNTS = (
    *("hidden_dim", "feature_size", "mask_feature_size", "num_attention_heads", "encoder_layers", "dim_feedforward"),
    *("encoder_feedforward_dim", "decoder_layers", "num_queries", "num_labels"),
)
COUNTS_OF_BACKBONES = (
    *("embedding_size", "embed_dim", "window_size"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
)
COUNT_LISTS = ("hidden_sizes", "depths", "num_heads")
MAX_COUNT = 65_535


def read_configuration(description: dict[str, Any], preprocessing: dict[str, Any]) -> tuple[ConfigDict, list[str]]:
    """Translate transformers' description of a model.

    Args:
      description: the contents of config.json.
      preprocessing: the contents of preprocessor_config.json; {} leaves the test size of ADE20K.

    Returns:
      The whole configuration, with the training recipe for ADE20K, and the names of the classes.

    Raises:
      ValueError: the architecture or the preprocessing is not supported; the message lists each field.
    """
    problems = _wrong_kinds(description)
    if problems:
        raise ValueError("config.json has values of the wrong kind:" + "".join(f"\n  {text}" for text in problems))
    config = base_config()
    use_mask2former(config)
    _read_architecture(description, config.model, problems)
    names = _class_names(description, problems)
    config.model.num_classes = len(names)
    _read_test_size(preprocessing, config.inference, problems)
    if problems:
        raise ValueError("this network does not support the model:" + "".join(f"\n  {text}" for text in problems))
    return config, names


def read_backbone(description: dict[str, Any]) -> ConfigDict:
    """Translate transformers' description of a backbone by itself.

    Args:
      description: the contents of config.json; its `model_type` is one that `kind_of` knows.

    Returns:
      The `config.model.backbone` of the same network.

    Raises:
      ValueError: the architecture is not supported; the message lists each field.
    """
    kind = kind_of(description["model_type"])
    assert kind is not None
    foreign = FOREIGN_BACKBONES[kind]
    prefix = "backbone_config."
    problems = _wrong_kinds({"backbone_config": description})
    if not problems:
        check_fixed(description, foreign.fixed, prefix, problems)
        backbone = foreign.read(description, problems)
    if problems:
        lines = "".join(f"\n  {text.removeprefix(prefix)}" for text in problems)
        raise ValueError(f"this network does not support the backbone:{lines}")
    return backbone


def _wrong_kinds(description: dict[str, Any]) -> list[str]:
    """A line for each field that is not of the kind, or in the range, that transformers gives it."""
    backbone = description.get("backbone_config")
    nested = backbone if isinstance(backbone, dict) else {}
    counts = [(name, description[name]) for name in COUNTS if name in description]
    counts += [(f"backbone_config.{name}", nested[name]) for name in COUNTS_OF_BACKBONES if name in nested]
    problems = [
        f"{name} is {str(value)[:50]!r}; it must be a whole number from 1 to {MAX_COUNT}"
        for name, value in counts
        if not _is_count(value)
    ]
    for name in COUNT_LISTS:
        value = nested.get(name, [1, 1, 1, 1])
        if not (isinstance(value, list) and len(value) == 4 and all(map(_is_count, value))):
            problems.append(f"backbone_config.{name} is {str(value)[:50]!r}; it must be a list of 4 whole numbers")
    for name in ("mlp_ratio", "drop_path_rate"):
        value = nested.get(name, 0.5)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            problems.append(f"backbone_config.{name} is {str(value)[:50]!r}; it must be a number from 0 to 100")
    names = description.get("id2label")
    if names is not None and not isinstance(names, dict):
        problems.append(f"id2label is a {type(names).__name__}; it must be an object of ids and names")
    return problems


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COUNT


def describe_model(config: ConfigDict, classes: ClassTable) -> dict[str, Any]:
    """The contents of config.json for a Mask2Former.

    Raises:
      ValueError: the model is FASeg, or transformers does not support it for another reason; the message lists each
        field.
    """
    _check_supported_by_transformers(config.model)
    model, loss = config.model, config.loss
    backbone = FOREIGN_BACKBONES[model.backbone.kind]
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "torch_dtype": "float32",
        "backbone_config": {
            "model_type": model.backbone.kind,
            **backbone.fixed,
            "out_features": STAGES,
            "out_indices": [1, 2, 3, 4],
            **backbone.describe(model.backbone),
        },
        **FIXED,
        "hidden_dim": model.hidden_dim,
        "feature_size": model.hidden_dim,
        "mask_feature_size": model.hidden_dim,
        "num_attention_heads": model.num_heads,
        "encoder_layers": model.pixel_decoder.num_layers,
        "encoder_feedforward_dim": model.pixel_decoder.ffn_dim,
        "decoder_layers": model.decoder.num_layers + 1,  # theirs counts the prediction of the initial queries
        "dim_feedforward": model.decoder.ffn_dim,
        "num_queries": model.decoder.num_queries,
        "dropout": 0.0,
        "class_weight": loss.class_weight,
        "mask_weight": loss.mask_weight,
        "dice_weight": loss.dice_weight,
        "no_object_weight": loss.no_object_weight,
        "train_num_points": loss.num_points,
        "oversample_ratio": loss.oversample_ratio,
        "importance_sample_ratio": loss.importance_ratio,
        "ignore_value": config.data.ignore_label,
        **describe_classes(classes),
    }


def describe_classes(classes: ClassTable) -> dict[str, Any]:
    """The fields of config.json that name the classes."""
    return {
        "id2label": {str(i): name for i, name in enumerate(classes.names)},
        "label2id": {name: i for i, name in enumerate(classes.names)},
    }


def describe_preprocessing(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """The contents of preprocessor_config.json, including the test size."""
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.inference.short_side, "longest_edge": config.inference.max_long_side},
        "size_divisor": BACKBONES[config.model.backbone.kind].size_divisor,
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(float(value) / 255, 6) for value in PIXEL_MEAN],
        "image_std": [round(float(value) / 255, 6) for value in PIXEL_STD],
        "ignore_index": config.data.ignore_label,
        "do_reduce_labels": False,
        "num_labels": num_classes,
    }


def is_mask2former(model: ConfigDict) -> bool:
    """Whether transformers can compute the network of a `config.model`."""
    return not _differences_from_mask2former(model)


NO_MASK2FORMER = "a Mask2Former of transformers with it is another network, without a feature pyramid"


def _differences_from_mask2former(model: ConfigDict) -> list[str]:
    mask2former = base_config()
    use_mask2former(mask2former)
    differences = [
        f"\n  config.model.{field} is {value!r}; it must be {needed!r}"
        for (field, value), (_, needed) in zip(_switches(model), _switches(mask2former.model), strict=True)
        if value != needed
    ]
    if not FOREIGN_BACKBONES[model.backbone.kind].hugging_face:
        differences.append(f"\n  config.model.backbone.kind is {model.backbone.kind!r}; {NO_MASK2FORMER}")
    return differences


def _check_supported_by_transformers(model: ConfigDict) -> None:
    if problems := _differences_from_mask2former(model):
        raise ValueError(
            f"transformers has only Mask2Former, not FASeg, and cannot compute this model:{''.join(problems)}\n"
            "Write it with the names of the official programs, as a .safetensors or .pth file."
        )


def _switches(model: ConfigDict) -> list[tuple[str, Any]]:
    """The fields that distinguish FASeg from Mask2Former, and those whose value is fixed in transformers."""
    return [
        ("key_positions", model.key_positions),
        ("pixel_decoder.num_points", model.pixel_decoder.num_points),
        ("decoder.positional_queries", model.decoder.positional_queries),
        ("decoder.hrca", model.decoder.hrca),
        ("decoder.mask_threshold", model.decoder.mask_threshold),
    ]


def _read_architecture(description: dict[str, Any], model: ConfigDict, problems: list[str]) -> None:
    """Set the fields of `config.model` from config.json; add what is not supported to `problems`."""
    check_fixed(description, FIXED, "", problems)
    model.hidden_dim = description.get("hidden_dim", 256)
    for field in ("feature_size", "mask_feature_size"):
        if description.get(field, 256) != model.hidden_dim:
            problems.append(f"{field} is {description.get(field, 256)}; it must be hidden_dim, {model.hidden_dim}")
    model.num_heads = description.get("num_attention_heads", 8)
    model.pixel_decoder.num_layers = description.get("encoder_layers", 6)
    model.pixel_decoder.ffn_dim = description.get("encoder_feedforward_dim", 1024)
    model.decoder.num_layers = description.get("decoder_layers", 10) - 1  # see describe_model
    model.decoder.ffn_dim = description.get("dim_feedforward", 2048)
    model.decoder.num_queries = description.get("num_queries", 100)
    _read_backbone(description, model, problems)


def _read_backbone(description: dict[str, Any], model: ConfigDict, problems: list[str]) -> None:
    fields = description.get("backbone_config")
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    kind = kind_of(model_type)
    if not isinstance(fields, dict) or kind is None:
        known = [name for name in MODEL_TYPES if FOREIGN_BACKBONES[kind_of(name) or ""].hugging_face]
        supported = ", ".join(map(repr, known))
        named = (
            f"; config.json names only a backbone, {description['backbone']!r}" if description.get("backbone") else ""
        )
        problems.append(f"backbone_config.model_type is {model_type!r}; supported are {supported}{named}")
        return
    backbone = FOREIGN_BACKBONES[kind]
    if not backbone.hugging_face:
        problems.append(f"backbone_config.model_type is {model_type!r}; {NO_MASK2FORMER}")
        return
    check_fixed(fields, backbone.fixed, "backbone_config.", problems)
    if fields.get("out_features") != STAGES and fields.get("out_indices") != [1, 2, 3, 4]:
        problems.append(f"backbone_config.out_features is {fields.get('out_features')}; it must be {STAGES}")
    model.backbone = backbone.read(fields, problems)


def _class_names(description: dict[str, Any], problems: list[str]) -> list[str]:
    by_id = description.get("id2label") or {str(i): f"LABEL_{i}" for i in range(description.get("num_labels", 2))}
    names = [str(by_id.get(str(i), "")).strip() for i in range(len(by_id))]
    if not all(names):
        problems.append(f"id2label has {len(names)} entries, without a name for each of the ids 0 to {len(names) - 1}")
    return names


def _read_test_size(preprocessing: dict[str, Any], inference: ConfigDict, problems: list[str]) -> None:
    """Set the test size from preprocessor_config.json; the smaller side of a fixed size becomes the shorter side's."""
    for field, ours in (("image_mean", PIXEL_MEAN), ("image_std", PIXEL_STD)):
        theirs = preprocessing.get(field, ours / 255)
        if np.shape(theirs) != (3,) or np.abs(np.asarray(theirs) * 255 - ours).max() > 0.01:
            problems.append(f"preprocessor_config.json: {field} is {theirs}; it must be ImageNet's, {ours / 255}")
    size = preprocessing.get("size", {})
    if not isinstance(size, dict):  # transformers 4.27 and earlier
        size = {"shortest_edge": size, "longest_edge": preprocessing.get("max_size")}
    inference.short_side = (
        size.get("shortest_edge") or min(size.get("height", 0), size.get("width", 0)) or inference.short_side
    )
    inference.max_long_side = size.get("longest_edge") or max(inference.max_long_side, inference.short_side)
