"""The configuration of `transformers`' Mask2Former as ours, and ours as its.

Its config.json says the architecture and the classes' names, its preprocessor_config.json the test size. FASeg's own
parts, HRCA and dynamic positional queries, have no counterpart there.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.config import base_config, use_mask2former
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.data.preprocessing import PIXEL_MEAN, PIXEL_STD, SIZE_DIVISOR

__all__ = ["describe_model", "describe_preprocessing", "read_configuration"]

STAGES = ["stage1", "stage2", "stage3", "stage4"]

# What the network here has built in, by the names of transformers, where absent fields have these values, too.
FIXED = {
    "pre_norm": False,
    "activation_function": "relu",
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}
FIXED_OF_BACKBONES = {
    "swin": {
        "patch_size": 4,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "use_absolute_embeddings": False,
        "layer_norm_eps": 1e-5,
    },
    "resnet": {
        "num_channels": 3,
        "layer_type": "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    },
}


def read_configuration(description: dict[str, Any], preprocessing: dict[str, Any]) -> tuple[ConfigDict, list[str]]:
    """Translate what transformers says of a model.

    Args:
      description: the contents of config.json.
      preprocessing: those of preprocessor_config.json, or {}, which leaves the test size of ADE20K.

    Returns:
      The whole configuration, whose recipe of training is the one for ADE20K, and the names of the classes.

    Raises:
      ValueError: an architecture or a preprocessing that is not supported; the message lists each field.
    """
    problems = []
    config = base_config()
    use_mask2former(config)
    _read_architecture(description, config.model, problems)
    names = _class_names(description, problems)
    config.model.num_classes = len(names)
    _read_test_size(preprocessing, config.inference, problems)
    if problems:
        raise ValueError("the model is not one that this network can be:" + "".join(f"\n  {text}" for text in problems))
    return config, names


def describe_model(config: ConfigDict, classes: ClassTable) -> dict[str, Any]:
    """The contents of config.json for a Mask2Former.

    Raises:
      ValueError: the model is FASeg, or differs otherwise from what transformers has; the message lists each field.
    """
    model = config.model
    mask2former = base_config()
    use_mask2former(mask2former)
    problems = [
        f"config.model.{field} is {value!r}; it must be {needed!r}"
        for (field, value), (_, needed) in zip(_switches(model), _switches(mask2former.model), strict=True)
        if value != needed
    ]
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(
            f"transformers has Mask2Former alone, not FASeg, and cannot compute this model:{listed}\n"
            "Write it under the names of the official programs, as a .safetensors or .pth file."
        )
    labels = dict(enumerate(classes.names))
    backbone = {"out_features": STAGES, "out_indices": [1, 2, 3, 4], "depths": list(model.backbone.blocks)}
    if model.backbone.kind == "swin":
        backbone |= {
            "embed_dim": model.backbone.embed_dim,
            "num_heads": list(model.backbone.heads),
            "window_size": model.backbone.window,
            "mlp_ratio": float(model.backbone.mlp_ratio),
            "drop_path_rate": model.backbone.drop_path,
        }
    else:
        width = model.backbone.width
        backbone |= {"embedding_size": width, "hidden_sizes": [4 * width * 2**i for i in range(4)]}
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "torch_dtype": "float32",
        "backbone_config": {
            "model_type": model.backbone.kind,
            **FIXED_OF_BACKBONES[model.backbone.kind],
            **backbone,
        },
        **FIXED,
        "hidden_dim": model.hidden_dim,
        "feature_size": model.hidden_dim,
        "mask_feature_size": model.hidden_dim,
        "num_attention_heads": model.num_heads,
        "encoder_layers": model.pixel_decoder.num_layers,
        "encoder_feedforward_dim": model.pixel_decoder.ffn_dim,
        "decoder_layers": model.decoder.num_layers + 1,
        "dim_feedforward": model.decoder.ffn_dim,
        "num_queries": model.decoder.num_queries,
        "dropout": 0.0,
        "class_weight": config.loss.class_weight,
        "mask_weight": config.loss.mask_weight,
        "dice_weight": config.loss.dice_weight,
        "no_object_weight": config.loss.no_object_weight,
        "train_num_points": config.loss.num_points,
        "oversample_ratio": config.loss.oversample_ratio,
        "importance_sample_ratio": config.loss.importance_ratio,
        "ignore_value": config.data.ignore_label,
        "id2label": {str(i): name for i, name in labels.items()},
        "label2id": {name: i for i, name in labels.items()},
    }


def describe_preprocessing(config: ConfigDict, num_classes: int) -> dict[str, Any]:
    """The contents of preprocessor_config.json, the test size among them."""
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": config.inference.short_side, "longest_edge": config.inference.max_long_side},
        "size_divisor": SIZE_DIVISOR,
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


def _read_architecture(description: dict[str, Any], model: ConfigDict, problems: list[str]) -> None:
    """Set the fields of `config.model` by config.json; what it cannot have joins `problems`."""
    _check(description, FIXED, "", problems)
    model.hidden_dim = description.get("hidden_dim", 256)
    for field in ("feature_size", "mask_feature_size"):
        if description.get(field, 256) != model.hidden_dim:
            problems.append(f"{field} is {description.get(field, 256)}; it must be hidden_dim, {model.hidden_dim}")
    model.num_heads = description.get("num_attention_heads", 8)
    model.pixel_decoder.num_layers = description.get("encoder_layers", 6)
    model.pixel_decoder.ffn_dim = description.get("encoder_feedforward_dim", 1024)
    model.decoder.num_layers = description.get("decoder_layers", 10) - 1  # one is that of the initial queries
    model.decoder.ffn_dim = description.get("dim_feedforward", 2048)
    model.decoder.num_queries = description.get("num_queries", 100)

    backbone = description.get("backbone_config")
    kind = backbone.get("model_type") if isinstance(backbone, dict) else None
    if kind not in FIXED_OF_BACKBONES:
        named = f"; the backbone is given by name, {description['backbone']!r}" if description.get("backbone") else ""
        problems.append(f"backbone_config.model_type is {kind!r}; supported are 'swin' and 'resnet'{named}")
        return
    _check(backbone, FIXED_OF_BACKBONES[kind], "backbone_config.", problems)
    if backbone.get("out_features") != STAGES and backbone.get("out_indices") != [1, 2, 3, 4]:
        problems.append(f"backbone_config.out_features is {backbone.get('out_features')}; it must be {STAGES}")
    model.backbone = {"swin": _swin, "resnet": _resnet}[kind](backbone, problems)


def _check(fields: dict[str, Any], fixed: dict[str, Any], prefix: str, problems: list[str]) -> None:
    for name, value in fixed.items():
        if fields.get(name, value) != value:
            problems.append(f"{prefix}{name} is {fields[name]}; it must be {value}")


def _swin(backbone: dict[str, Any], problems: list[str]) -> ConfigDict:
    mlp_ratio = backbone.get("mlp_ratio", 4.0)
    if mlp_ratio != int(mlp_ratio):
        problems.append(f"backbone_config.mlp_ratio is {mlp_ratio}; it must be a whole number")
    return ConfigDict(
        {
            "kind": "swin",
            "embed_dim": backbone.get("embed_dim", 96),
            "blocks": tuple(backbone.get("depths", (2, 2, 6, 2))),
            "heads": tuple(backbone.get("num_heads", (3, 6, 12, 24))),
            "window": backbone.get("window_size", 7),
            "mlp_ratio": int(mlp_ratio),
            "drop_path": float(backbone.get("drop_path_rate", 0.1)),
        }
    )


def _resnet(backbone: dict[str, Any], problems: list[str]) -> ConfigDict:
    width = backbone.get("embedding_size", 64)
    widths = backbone.get("hidden_sizes", [256, 512, 1024, 2048])
    if widths != [4 * width * 2**i for i in range(4)]:
        problems.append(f"backbone_config.hidden_sizes is {widths}; it must be 4, 8, 16, 32 times {width}")
    blocks = tuple(backbone.get("depths", (3, 4, 6, 3)))
    return ConfigDict({"kind": "resnet", "blocks": blocks, "width": width, "norm": "frozen_batch_norm"})


def _class_names(description: dict[str, Any], problems: list[str]) -> list[str]:
    by_id = description.get("id2label") or {str(i): f"LABEL_{i}" for i in range(description.get("num_labels", 2))}
    names = [str(by_id.get(str(i), "")).strip() for i in range(len(by_id))]
    if not all(names):
        problems.append(f"id2label has {len(names)} entries, but not a name for each of the ids 0 to {len(names) - 1}")
    return names


def _read_test_size(preprocessor: dict[str, Any], inference: ConfigDict, problems: list[str]) -> None:
    """Set the test size by preprocessor_config.json; a fixed size there becomes that of the shorter side."""
    for field, ours in (("image_mean", PIXEL_MEAN), ("image_std", PIXEL_STD)):
        theirs = preprocessor.get(field, ours / 255)
        if np.shape(theirs) != (3,) or np.abs(np.asarray(theirs) * 255 - ours).max() > 0.01:
            problems.append(f"preprocessor_config.json: {field} is {theirs}; it must be ImageNet's, {ours / 255}")
    size = preprocessor.get("size", {})
    if not isinstance(size, dict):  # as earlier versions wrote it
        size = {"shortest_edge": size, "longest_edge": preprocessor.get("max_size")}
    inference.short_side = (
        size.get("shortest_edge") or min(size.get("height", 0), size.get("width", 0)) or inference.short_side
    )
    inference.max_long_side = size.get("longest_edge") or max(inference.max_long_side, inference.short_side)


def _switches(model: ConfigDict) -> list[tuple[str, Any]]:
    """What distinguishes FASeg from Mask2Former, and what transformers has built in."""
    return [
        ("key_positions", model.key_positions),
        ("pixel_decoder.num_points", model.pixel_decoder.num_points),
        ("decoder.positional_queries", model.decoder.positional_queries),
        ("decoder.hrca", model.decoder.hrca),
        ("decoder.mask_threshold", model.decoder.mask_threshold),
    ]
