"""The schema of the configuration covers every field, and refuses every wrong value by a line that names the field."""

import math
import sys

import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from fasseg_jax.config import ConfigError, base_config, check_config, convnext, flat_fields, load_config, swin, vit
from fasseg_jax.config.config_flags import DEFINE_config_file
from fasseg_jax.config.schema import BACKBONES, FIELDS
from fasseg_jax.data.labels import LABEL_ORIENTATIONS
from fasseg_jax.data.sources.registry import SOURCES
from fasseg_jax.models.backbones import BACKBONES as BACKBONE_TYPES
from fasseg_jax.ops.deformable.sampling import METHODS

RECIPES = [
    *(
        f"configs/ade20k.py:{baseline}{name}"
        for baseline in ("", "mask2former_")
        for name in ("r50", "swin_t", "swin_l")
    ),
    *("configs/cityscapes.py:r101", "configs/shapes.py"),
]
# Fields for which zero is a right value.
MAY_BE_ZERO = {
    *("data.ignore_label", "data.num_threads", "data.prefetch"),
    *("loss.class_weight", "loss.mask_weight", "loss.dice_weight", "loss.no_object_weight", "loss.importance_ratio"),
    *("model.decoder.mask_threshold", "model.backbone.drop_path", "model.backbone.num_registers"),
    *("optimizer.warmup_steps", "train.patience", "data.repeat_below", "augmentation.balanced_crops"),
    *("loss.class_balance", "data.validation_share"),
    *("optimizer.poly_power", "optimizer.backbone_multiplier", "optimizer.weight_decay"),
    *("train.seed", "train.ema_decay", "inference.sliding.overlap", "inference.sliding.short_side"),
}
FREE_TEXTS = {"data.root", "data.dataset", "data.group", "train.init"} | {
    f"data.tfds.{name}" for name in ("name", "image", "labels", "training", "validation")
}
MAY_BE_EMPTY = ("inference.sliding.window", "loss.class_weights", "train.trackers")
NO_NUMBERS = (math.nan, math.inf, -math.inf)
WRONG_KINDS = (None, {}, {"a": 1}, [], (), b"x", object())


def config_with(backbone: ConfigDict) -> ConfigDict:
    config = base_config()
    config.model.backbone = backbone
    return config


CONFIGS = {
    "resnet": base_config(),
    "swin": config_with(swin("t")),
    "convnext": config_with(convnext("t")),
    "vit": config_with(vit("s")),
}


def wrong_values(name: str, default) -> list:
    """Values that the field must refuse, made from its name and default without the schema."""
    if isinstance(default, bool):
        return [*WRONG_KINDS, 0, 1, -1, 0.5, "True", "yes", *NO_NUMBERS]
    if isinstance(default, int | float):
        huge = [10**30, -(10**30)] + ([1e300] if isinstance(default, float) else [])
        zero = [] if name in MAY_BE_ZERO else [0]
        fraction = [1.5] if isinstance(default, int) else []
        return [
            *WRONG_KINDS,
            True,
            False,
            "",
            "1",
            "x",
            -1,
            -default or -1,
            (1, 2),
            *NO_NUMBERS,
            *huge,
            *zero,
            *fraction,
        ]
    if isinstance(default, str):
        wrong_choice = [] if name in FREE_TEXTS else ["", "nothing", default.upper()]
        return [*WRONG_KINDS, 0, 1, 1.5, True, ("folder",), *NO_NUMBERS, *wrong_choice]
    example = default or (512, 512)
    elements = [None, "1", "x", True, -1, 10**30, (1, 2), *NO_NUMBERS, *([] if name == "optimizer.betas" else [0, 1.5])]
    replaced = [(*example[:-1], element) for element in elements]
    lengths = [] if name.endswith("short_sides") else [example[:1], (*example, *example)]
    scalars = [kind for kind in WRONG_KINDS if name not in MAY_BE_EMPTY or kind not in ((), [])]
    return [*scalars, 0, 1, 384, "384", "", True, *NO_NUMBERS, *lengths, *replaced]


CASES = [
    (kind, name, value)
    for kind, config in CONFIGS.items()
    for name, default in flat_fields(config).items()
    if kind == "resnet" or name.startswith("model.backbone.")
    for value in wrong_values(name, default)
]


def changed(kind: str, name: str, value) -> ConfigDict:
    fields = CONFIGS[kind].to_dict()
    *groups, last = name.split(".")
    group = fields
    for part in groups:
        group = group[part]
    group[last] = value
    return ConfigDict(fields)


def refusal(config: ConfigDict) -> str:
    """The message by which a configuration is refused, or "" if it is accepted."""
    try:
        check_config(config)
    except ConfigError as error:
        return str(error)
    return ""


def test_every_field_refuses_every_wrong_value():
    assert len(CASES) > 1_500
    messages = {(name, repr(value)): refusal(changed(kind, name, value)) for kind, name, value in CASES}
    assert not [case for case, message in messages.items() if not message]
    assert not [case for case, message in messages.items() if f"config.{case[0]} " not in message]
    assert not [case for case, message in messages.items() if "\n" in message or len(message) > 500]


# Texts that are no value of any field but those that hold texts.
TEXTS = (
    "nan",
    "inf",
    "-inf",
    "-1",
    "1e300",
    "1" * 30,
    "",
    "x",
    "None",
    "(-1, -1)",
    "('x', 'y')",
    "(nan, 1)",
    "{}",
    "[",
)


@pytest.mark.parametrize("recipe", ["configs/ade20k.py:r50", "configs/ade20k.py:swin_t"])
def test_every_override_with_a_wrong_text_is_refused(recipe, monkeypatch):
    accepted, unnamed = [], []
    for name in flat_fields(load_config(recipe)).keys() - FREE_TEXTS:
        if recipe.endswith("swin_t") and not name.startswith("model.backbone."):
            continue
        for text in TEXTS:
            monkeypatch.setattr(sys, "argv", ["train.py", f"--config={recipe}", f"--config.{name}={text}"])
            values = flags.FlagValues()
            config = DEFINE_config_file("config", None, "The recipe.", values)
            try:
                values(sys.argv)
                assert config.value
                accepted.append((name, text))
            except (flags.Error, ValueError) as error:
                if f"config.{name}" not in str(error):
                    unnamed.append((name, text, str(error)))
    assert sorted(accepted) == ([] if recipe.endswith("swin_t") else [(name, "{}") for name in MAY_BE_EMPTY])  # as ()
    assert not unnamed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.num_heads": 6}, "config.model.num_heads = 6 and config.model.hidden_dim = 256: .* must divide"),
        ({"model.hidden_dim": 100}, "config.model.hidden_dim is 100; it must be a multiple of 32"),
        (
            {"model.backbone.heads": (3, 6, 12, 25)},
            "config.model.backbone.heads = .* and config.model.backbone.embed_dim",
        ),
        ({"train.accumulation": 3}, "config.train.accumulation = 3 and config.train.batch_size = 16: .* must divide"),
        (
            {"data.max_targets": 101},
            "config.data.max_targets = 101 and config.model.decoder.num_queries = 100 and",
        ),
        ({"model.decoder.hrca_omega": 0}, "config.model.decoder.hrca_omega is 0; it must be an integer from 1"),
        ({"data.group": ""}, "config.data.group = '': it must be auto, none or a regular expression"),
        ({"data.group": "["}, r"config.data.group = '\[': it must be auto, none or a regular expression"),
        ({"augmentation.crop": (512, 500)}, r"config.augmentation.crop is \(512, 500\).*multiple of 32"),
        (
            {"augmentation.quarter_turns": True, "augmentation.crop": (512, 544)},
            "config.augmentation.quarter_turns = True and config.augmentation.crop = .*: quarter turns need a square",
        ),
        (
            {"loss.class_weights": (1.0, 2.0)},
            r"config.loss.class_weights = \(1.0, 2.0\) and config.model.num_classes = 150: .* a weight for each class",
        ),
        ({"train.stepz": 1}, "config.train.stepz: there is no such field; did you mean config.train.steps?"),
        ({"optimizer.accumulation": 2}, "there is no such field; did you mean config.train.accumulation?"),
        ({"train.steps": 0, "train.seed": -1}, "config.train.steps is 0; .*; config.train.seed is -1"),
    ],
)
def test_messages(fields, message):
    config = CONFIGS["swin"] if "model.backbone.heads" in fields else base_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=message):
        check_config(config, training=True)


def test_as_many_targets_as_classes_need_a_query():
    config = base_config()
    config.model.num_classes, config.model.decoder.num_queries = 3, 20
    check_config(config, training=True)  # a crop holds at most the three classes
    config.model.num_classes = 30
    check_config(config)  # for prediction
    with pytest.raises(ConfigError, match="needs a query"):
        check_config(config, training=True)


def test_a_missing_field_is_named():
    config = base_config()
    del config.train["steps"]
    with pytest.raises(ConfigError, match="config.train.steps is missing; it must be an integer from 1"):
        check_config(config)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_schema_has_every_field(config):
    assert flat_fields(CONFIGS[config]).keys() == FIELDS.keys() | BACKBONES[config].keys()


def test_choices_are_those_of_the_registries():
    assert FIELDS["data.label_orientation"].choices == LABEL_ORIENTATIONS
    assert set(FIELDS["data.source"].choices) == SOURCES.keys()
    assert set(FIELDS["model.backbone.kind"].choices) == BACKBONE_TYPES.keys() == BACKBONES.keys()
    assert set(FIELDS["model.deformable_attention"].choices) == {"auto", *METHODS}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_right(recipe):
    check_config(load_config(recipe), training=True)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(flat_fields(base_config()))), ANYTHING)
def test_whatever_a_field_holds_is_accepted_or_refused_by_its_name(name, value):
    """No other error comes out, and what is accepted is finite."""
    message = refusal(changed("resnet", name, value))
    assert not message or f"config.{name}" in message
    if not message and isinstance(value, int | float):
        assert math.isfinite(value)
