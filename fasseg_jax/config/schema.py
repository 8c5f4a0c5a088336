"""What each field of a configuration may hold, and the check that every program makes before it does anything else.

`FIELDS` declares kind and range of every field, `BACKBONES` those of the fields that only one kind of backbone has, and
`DEPENDENCES` what fields must fulfil together. docs/configuration.md shows the ranges.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from fasseg_jax.config.loading import flat_fields
from fasseg_jax.config.rules import Rule, Sequence

__all__ = [
    "BACKBONES",
    "DEPENDENCES",
    "FIELDS",
    "SIZE_DIVISOR",
    "ConfigError",
    "check_config",
    "check_section",
    "near_name",
]


class ConfigError(ValueError):
    """A configuration is wrong; the message names the fields."""


@dataclasses.dataclass(frozen=True)
class Dependence:
    """What several fields must fulfil together.

    Attributes:
      fields: their names.
      holds: the condition, of the fields' values.
      words: the condition in words.
      training: only training needs it.
    """

    fields: tuple[str, ...]
    holds: Callable[..., bool]
    words: str
    training: bool = False


def _integer(least: int, most: int, multiple: int = 1) -> Rule:
    return Rule(int, least, most, multiple=multiple)


def _number(least: float, most: float, above: bool = False, below: bool = False) -> Rule:
    return Rule(float, least, most, above, below)


def _choice(*choices: str) -> Rule:
    return Rule(str, choices=choices)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return bool(text)  # the empty expression would put all photos into one group


SIZE_DIVISOR = 32  # the network's largest stride
SWITCH = Rule(bool)
TEXT = Rule(str)
COUNT = _integer(1, 1_000_000_000)
LENGTH = _integer(1, 65_535)  # of an image, in pixels
CHANNELS = _integer(1, 65_536)
LAYERS = _integer(1, 1_000)
WEIGHT = _number(0, 1e6)  # of a term of the loss, or a multiple
SIDES = Sequence(LENGTH, "one or more lengths")
STAGES = Sequence(LAYERS, "four numbers", 4)

FIELDS: dict[str, Rule | Sequence] = {
    "data.source": _choice("folder", "cityscapes", "tfds", "shapes"),
    "data.root": TEXT,
    "data.dataset": TEXT,
    "data.ignore_label": _integer(0, 65_535),
    "data.label_orientation": _choice("auto", "viewer", "stored"),
    "data.reduce_zero_label": SWITCH,
    "data.validation_share": _number(0, 0.9),
    "data.group": TEXT,
    "data.max_targets": _integer(1, 65_535),
    "data.repeat_below": _number(0, 1),
    "data.num_threads": _integer(0, 1_024),
    "data.prefetch": _integer(0, 1_000_000),
    "data.tfds.name": TEXT,
    "data.tfds.image": TEXT,
    "data.tfds.labels": TEXT,
    "data.tfds.training": TEXT,
    "data.tfds.validation": TEXT,
    "data.shapes.size": Sequence(LENGTH, "a height and a width", 2),
    "data.shapes.training": COUNT,
    "data.shapes.validation": COUNT,
    "model.num_classes": _integer(1, 65_535),
    "model.dtype": _choice("float32", "bfloat16"),
    "model.remat": SWITCH,
    "model.hidden_dim": _integer(32, 65_536, multiple=32),  # group norm has 32 groups
    "model.num_heads": _integer(1, 1_024),
    "model.backbone.kind": _choice("convnext", "resnet", "swin", "vit"),
    "model.deformable_attention": _choice("auto", "gpu", "tpu", "gather"),
    "model.key_positions": _choice("conditional", "sine"),
    "model.pixel_decoder.num_layers": LAYERS,
    "model.pixel_decoder.num_points": _integer(1, 1_024),
    "model.pixel_decoder.ffn_dim": CHANNELS,
    "model.decoder.num_queries": _integer(1, 65_535),
    "model.decoder.num_layers": LAYERS,
    "model.decoder.ffn_dim": CHANNELS,
    "model.decoder.mask_threshold": _number(0, 1),
    "model.decoder.positional_queries": _choice("dfpq", "learned"),
    "model.decoder.first_focus": _choice("background", "foreground"),
    "model.decoder.hrca": SWITCH,
    "model.decoder.hrca_omega": _integer(1, 1_000_000),
    "model.decoder.hrca_selection": _choice("window", "pixel"),
    "loss.class_weight": WEIGHT,
    "loss.mask_weight": WEIGHT,
    "loss.dice_weight": WEIGHT,
    "loss.no_object_weight": WEIGHT,
    "loss.class_weights": Sequence(WEIGHT, "the weights of all classes", or_empty=True),
    "loss.class_balance": _number(0, 2),
    "loss.num_points": _integer(1, 100_000_000),
    "loss.oversample_ratio": _number(1, 1_000),
    "loss.importance_ratio": _number(0, 1),
    "loss.shared_points": SWITCH,
    "optimizer.learning_rate": _number(0, 100, above=True),
    "optimizer.warmup_steps": _integer(0, 1_000_000_000),
    "optimizer.poly_power": _number(0, 100),
    "optimizer.backbone_multiplier": WEIGHT,
    "optimizer.layer_decay": _number(0, 1, above=True),
    "optimizer.weight_decay": _number(0, 100),
    "optimizer.betas": Sequence(_number(0, 1, below=True), "two numbers", 2),
    "optimizer.eps": _number(0, 1, above=True),
    "optimizer.clip_norm": _number(0, 1e9, above=True),
    "train.steps": COUNT,
    "train.batch_size": _integer(1, 1_000_000),
    "train.fit_batch_size": SWITCH,
    "train.accumulation": _integer(1, 1_000_000),
    "train.seed": _integer(0, 2**32 - 1),
    "train.init": TEXT,
    "train.ema_decay": _number(0, 1, below=True),
    "train.shard_parameters": SWITCH,
    "train.log_every": COUNT,
    "train.trackers": Sequence(_choice("wandb", "mlflow"), "names of services", or_empty=True),
    "train.checkpoint_every": COUNT,
    "train.evaluate_every": COUNT,
    "train.patience": _integer(0, 1_000_000),
    "train.evaluation_stride": COUNT,
    "train.keep_checkpoints": COUNT,
    "train.lost_host_seconds": _integer(10, 240),
    "train.watchdog_minutes": _number(0, 10_000),
    "augmentation.short_sides": SIDES,
    "augmentation.max_long_side": LENGTH,
    "augmentation.crop": Sequence(
        _integer(SIZE_DIVISOR, 65_504, multiple=SIZE_DIVISOR), "a height and a width in pixels", 2
    ),
    "augmentation.color_jitter": SWITCH,
    "augmentation.flip": SWITCH,
    "augmentation.vertical_flip": SWITCH,
    "augmentation.quarter_turns": SWITCH,
    "augmentation.balanced_crops": _number(0, 1),
    "inference.mode": _choice("single", "multi_scale", "sliding"),
    "inference.short_side": LENGTH,
    "inference.max_long_side": LENGTH,
    "inference.multi_scale.short_sides": SIDES,
    "inference.multi_scale.max_long_side": LENGTH,
    "inference.multi_scale.flip": SWITCH,
    "inference.sliding.window": Sequence(LENGTH, "a height and a width in pixels", 2, or_empty=True),
    "inference.sliding.overlap": _number(0, 1, below=True),
    "inference.sliding.short_side": _integer(0, 65_535),
    "inference.round_to": _integer(SIZE_DIVISOR, 65_504, multiple=SIZE_DIVISOR),
}

# `config.model.backbone.kind` -> the fields of that kind.
BACKBONES: dict[str, dict[str, Rule | Sequence]] = {
    "convnext": {
        "model.backbone.blocks": STAGES,
        "model.backbone.width": CHANNELS,
        "model.backbone.version": _integer(1, 2),
        "model.backbone.drop_path": _number(0, 1, below=True),
    },
    "resnet": {
        "model.backbone.blocks": STAGES,
        "model.backbone.width": CHANNELS,
        "model.backbone.norm": _choice("frozen_batch_norm", "batch_norm"),
    },
    "swin": {
        "model.backbone.blocks": STAGES,
        "model.backbone.embed_dim": CHANNELS,
        "model.backbone.heads": Sequence(_integer(1, 1_024), "four numbers", 4),
        "model.backbone.window": _integer(1, 1_024),
        "model.backbone.mlp_ratio": _integer(1, 1_024),
        "model.backbone.drop_path": _number(0, 1, below=True),
    },
    "vit": {
        "model.backbone.version": _integer(2, 3),
        "model.backbone.width": CHANNELS,
        "model.backbone.depth": LAYERS,
        "model.backbone.num_heads": _integer(1, 1_024),
        "model.backbone.patch_size": _integer(14, 16, multiple=2),
        "model.backbone.mlp_width": CHANNELS,
        "model.backbone.gated": SWITCH,
        "model.backbone.attention_bias": SWITCH,
        "model.backbone.num_registers": _integer(0, 1_024),
        "model.backbone.drop_path": _number(0, 1, below=True),
    },
}

DEPENDENCES = (
    Dependence(
        ("model.num_heads", "model.hidden_dim"),
        lambda heads, width: width % heads == 0,
        "the number of heads must divide hidden_dim",
    ),
    Dependence(
        ("model.backbone.heads", "model.backbone.embed_dim"),
        lambda heads, width: all((width << stage) % number == 0 for stage, number in enumerate(heads)),
        "the heads of stage i, from 0, must divide embed_dim times 2 to the power of i",
    ),
    Dependence(
        ("model.backbone.num_heads", "model.backbone.width"),
        lambda heads, width: width % (4 * heads) == 0,
        "width must be a multiple of 4 channels for each head",
    ),
    Dependence(
        ("data.max_targets", "model.decoder.num_queries", "model.num_classes"),
        lambda targets, queries, classes: min(targets, classes) <= queries,
        "each target needs a query, so max_targets or num_classes must be at most num_queries",
        training=True,
    ),
    Dependence(
        ("loss.class_weights", "model.num_classes"),
        lambda weights, classes: len(weights) in (0, classes),
        "there must be a weight for each class, or none",
    ),
    Dependence(
        ("augmentation.quarter_turns", "augmentation.crop"),
        lambda turns, crop: not turns or crop[0] == crop[1],
        "quarter turns need a square crop",
    ),
    Dependence(
        ("optimizer.backbone_multiplier", "train.init"),
        lambda multiplier, init: multiplier > 0 or init != "",
        "a frozen backbone needs start weights",
        training=True,
    ),
    Dependence(
        ("train.accumulation", "train.batch_size"),
        lambda parts, batch: batch % parts == 0,
        "accumulation must divide the batch size",
    ),
    Dependence(("data.group",), _is_pattern, "it must be auto, none or a regular expression"),
)


def check_config(config: ConfigDict, training: bool = False) -> None:
    """Check a whole configuration.

    Args:
      config: the whole configuration.
      training: whether it is for training, and must fulfil what only training needs.

    Raises:
      ConfigError: a field is missing, unknown, or has a value that is not allowed; the message names the field.
    """
    _check(flat_fields(config), FIELDS, training)


def check_section(name: str, section: ConfigDict) -> None:
    """Check `config.NAME` by itself, for example for `name` "model"; raises as `check_config`."""
    fields = {f"{name}.{field}": value for field, value in flat_fields(section).items()}
    _check(fields, {field: rule for field, rule in FIELDS.items() if field.startswith(f"{name}.")}, False)


def near_name(name: str, names: Iterable[str], prefix: str = "config.") -> str:
    """'; did you mean config.NEAR?' for the name that resembles `name` most; empty if none does."""
    names = list(names)
    last = name.rpartition(".")[2]
    moved = [other for other in names if other.rpartition(".")[2] == last]  # right, but in another group
    near = moved or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _check(fields: Mapping[str, Any], rules: Mapping[str, Rule | Sequence], training: bool) -> None:
    kind = fields.get("model.backbone.kind")
    rules = {**rules, **(BACKBONES.get(kind, {}) if isinstance(kind, str) else {})}
    missing = [name for name in rules if name not in fields]
    wrong = [name for name, rule in rules.items() if name in fields and not rule.allows(fields[name])]
    usable = rules.keys() - missing - set(wrong)
    unknown = fields.keys() - rules.keys()
    if "model.backbone.kind" not in usable:  # then it is not known which other fields the backbone has
        unknown = {name for name in unknown if not name.startswith("model.backbone.")}
    mistakes = [
        *(f"config.{name}: there is no such field{near_name(name, rules)}" for name in sorted(unknown)),
        *(f"config.{name} {rules[name].mistake(fields[name])}" for name in wrong),
        *(f"config.{name} is missing; it must be {rules[name].describe()}" for name in missing),
    ]
    for dependence in DEPENDENCES:
        if (dependence.training and not training) or not usable.issuperset(dependence.fields):
            continue
        if not dependence.holds(*(fields[name] for name in dependence.fields)):
            named = " and ".join(f"config.{name} = {fields[name]!r}" for name in dependence.fields)
            mistakes.append(f"{named}: {dependence.words}")
    if mistakes:
        more = f" (and {len(mistakes) - 3} more mistakes)" if len(mistakes) > 3 else ""
        raise ConfigError("; ".join(mistakes[:3]) + more)
