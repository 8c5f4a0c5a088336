import copy
import functools
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util

from fasseg_jax.config import load_config
from fasseg_jax.models.backbones import BACKBONES
from fasseg_jax.weights.backbones import FOREIGN_BACKBONES
from fasseg_jax.weights.backbones.resnet import DETECTRON2, TORCHVISION
from fasseg_jax.weights.fitting import remove_prefix
from fasseg_jax.weights.names.official import official_rules
from fasseg_jax.weights.state_dict import convert_backbone, convert_state_dict, holds_whole_model, to_state_dict
from tests.helpers.tiny import tiny_config
from tests.helpers.weight_cases import OFFICIAL, model_shapes, official_state_dict, tiny_state_dict


def flat(variables):
    return traverse_util.flatten_dict(variables, sep="/")


def assert_same(actual, expected):
    actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    for path, value in actual.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


@functools.cache
def tiny():
    """Configuration, state dict and variables of a small ResNet model; do not change them."""
    config = tiny_config()
    config.model.decoder.num_layers = 2  # finding the shapes of all variables takes most of the time
    state_dict = tiny_state_dict(config)
    return config, state_dict, convert_state_dict(state_dict, config.model)


@pytest.mark.parametrize(
    "model", [name if name == "faseg_r50_ade20k" else pytest.param(name, marks=pytest.mark.slow) for name in OFFICIAL]
)
def test_official_names_and_shapes_fit_the_model(model):
    config = load_config(OFFICIAL[model]["config"])
    zeros = {name: np.zeros(shape, np.float32) for name, shape in OFFICIAL[model]["state_dict"].items()}
    variables = convert_state_dict(zeros, config.model)
    assert {path: value.shape for path, value in flat(variables).items()} == model_shapes(config)
    # The official count leaves out buffers, which include frozen batch norm.
    assert sum(value.size for value in jax.tree.leaves(variables["params"])) == OFFICIAL[model]["parameters"]


@pytest.mark.parametrize("model", OFFICIAL)
def test_each_name_has_one_rule_and_comes_back_from_its_path(model):
    rules = official_rules(load_config(OFFICIAL[model]["config"]).model.backbone.kind)
    for name in OFFICIAL[model]["state_dict"]:
        (rule,) = [rule for rule in rules if rule.path_of(name)]
        path = rule.path_of(name)
        assert [other.name_of(path) for other in rules if other.name_of(path)] == [name]


def test_values_go_where_they_belong():
    state_dict = official_state_dict("faseg_r50_cityscapes")
    variables = convert_state_dict(state_dict, load_config("configs/cityscapes.py:r50").model)
    params, stats = variables["params"], variables["batch_stats"]["backbone"]
    backbone, pixel_decoder, decoder = params["backbone"], params["pixel_decoder"], params["decoder"]

    def official(name, axes=None):
        value = state_dict[name]
        return value if axes is None else np.einsum(axes, value)

    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    encoder = pixel + "transformer.encoder.layers.5."
    cross = predictor + "transformer_cross_attention_layers.12."
    attention = decoder["layer_12"]["cross_attention"]
    pairs = [
        (backbone["stem_conv"]["kernel"], official("backbone.stem.conv1.weight", "oihw->hwio")),
        (backbone["res4_5"]["conv2"]["kernel"], official("backbone.res4.5.conv2.weight", "oihw->hwio")),
        (backbone["res4_5"]["norm2"]["scale"], official("backbone.res4.5.conv2.norm.weight")),
        (backbone["res5_0"]["shortcut_norm"]["bias"], official("backbone.res5.0.shortcut.norm.bias")),
        (stats["res5_0"]["shortcut_norm"]["var"], official("backbone.res5.0.shortcut.norm.running_var")),
        (stats["stem_norm"]["mean"], official("backbone.stem.conv1.norm.running_mean")),
        (pixel_decoder["input_proj_0"]["kernel"], official(pixel + "input_proj.0.0.weight", "oihw->hwio")),
        (pixel_decoder["input_norm_3"]["scale"], official(pixel + "input_proj.3.1.weight")),
        (pixel_decoder["pos_conv_1"]["kernel"], official(pixel + "pos_linear.1.weight", "cihw->hwic")),
        (pixel_decoder["level_embed"], official(pixel + "transformer.level_embed")),
        (
            pixel_decoder["encoder_5"]["attention"]["sampling_offsets"]["kernel"],
            official(encoder + "self_attn.sampling_offsets.weight", "oi->io"),
        ),
        (pixel_decoder["encoder_5"]["linear2"]["kernel"], official(encoder + "linear2.weight", "oi->io")),
        (pixel_decoder["lateral"]["kernel"], official(pixel + "adapter_1.weight", "oihw->hwio")),
        (pixel_decoder["output_norm"]["bias"], official(pixel + "layer_1.norm.bias")),
        (pixel_decoder["mask_features"]["kernel"], official(pixel + "mask_features.weight", "oihw->hwio")),
        (attention["in_proj_kernel"], official(cross + "multihead_attn.in_proj_weight", "oi->io")),
        (attention["in_proj_bias"], official(cross + "multihead_attn.in_proj_bias")),
        (attention["out_proj"]["kernel"], official(cross + "multihead_attn.out_proj.weight", "oi->io")),
        (decoder["layer_12"]["cross_norm"]["scale"], official(cross + "norm.weight")),
        (decoder["query_feat"], official(predictor + "query_feat.weight")),
        (decoder["level_embed"], official(predictor + "level_embed.weight")),
        (decoder["class_embed"]["kernel"], official(predictor + "class_embed.weight", "oi->io")),
        (decoder["adapt_pos2d_1"]["kernel"], official(predictor + "adapt_pos2d.2.weight", "oi->io")),
    ]
    for number, (actual, expected) in enumerate(pairs):
        np.testing.assert_array_equal(actual, expected, err_msg=f"pair {number}")


@pytest.mark.slow
def test_swin_values_go_where_they_belong():
    config = tiny_config("swin")
    state_dict = tiny_state_dict(config)
    params = convert_state_dict(state_dict, config.model)["params"]["backbone"]
    block, official = params["stage1_block1"], "backbone.layers.1.blocks.1."
    np.testing.assert_array_equal(block["attention"]["qkv"]["kernel"], state_dict[official + "attn.qkv.weight"].T)
    np.testing.assert_array_equal(
        block["attention"]["relative_position_bias"], state_dict[official + "attn.relative_position_bias_table"]
    )
    np.testing.assert_array_equal(block["fc2"]["kernel"], state_dict[official + "mlp.fc2.weight"].T)
    np.testing.assert_array_equal(
        params["stage1_merge"]["reduction"]["kernel"], state_dict["backbone.layers.1.downsample.reduction.weight"].T
    )


@pytest.mark.parametrize("backbone", ["convnext", "resnet", "swin", "vit"])
def test_back_to_pytorch_bit_for_bit(backbone):
    config = tiny_config(backbone)
    state_dict = tiny_state_dict(config)
    back = to_state_dict(convert_state_dict(state_dict, config.model), config.model)
    assert back.keys() == state_dict.keys()
    for name, value in back.items():
        assert value.flags.c_contiguous
        np.testing.assert_array_equal(value, state_dict[name], err_msg=name)


def test_back_to_the_names_of_the_official_program():
    state_dict = official_state_dict("mask2former_r50_ade20k")
    config = load_config("configs/ade20k.py:mask2former_r50")
    back = to_state_dict(convert_state_dict(state_dict, config.model), config.model)
    assert {name: value.shape for name, value in back.items()} == {k: v.shape for k, v in state_dict.items()}


def test_variables_without_a_name_in_transformers():
    config, _, variables = tiny()
    with pytest.raises(ValueError, match="have no name in the hugging_face table: .*adapt_pos2d_0"):
        to_state_dict(variables, config.model, "hugging_face")


def test_one_error_lists_every_problem():
    config, state_dict, _ = tiny()
    state_dict = dict(state_dict)
    predictor = "sem_seg_head.predictor."
    del state_dict["backbone.stem.conv1.weight"]
    del state_dict["backbone.res2.0.conv1.norm.running_mean"]
    state_dict["backbone.surplus.weight"] = np.zeros(3, np.float32)
    state_dict[predictor + "query_embed.weight"] = np.zeros((7, 32), np.float32)
    state_dict[predictor + "decoder_norm.bias"] = np.full(32, np.nan, np.float32)
    state_dict[predictor + "decoder_norm.weight"] = np.ones(32, np.int64)
    with pytest.raises(ValueError) as error:
        convert_state_dict(state_dict, config.model)
    assert str(error.value).splitlines() == [
        "the weights do not fit the model of this configuration:",
        "  2 missing:",
        "    backbone.res2.0.conv1.norm.running_mean",
        "    backbone.stem.conv1.weight",
        "  1 unexpected:",
        "    backbone.surplus.weight",
        "  1 of another shape:",
        "    sem_seg_head.predictor.query_embed.weight is (7, 32), the model's is (9, 32)",
        "  1 not floating-point numbers:",
        "    sem_seg_head.predictor.decoder_norm.weight is int64",
        "  1 not finite (NaN or infinite):",
        "    sem_seg_head.predictor.decoder_norm.bias",
        "Is this the configuration that the weights belong to?",
    ]


def test_long_lists_are_cut():
    config, state_dict, _ = tiny()
    with pytest.raises(ValueError) as error:
        convert_state_dict({}, config.model)
    lines = str(error.value).splitlines()
    assert lines[1] == f"  {len(state_dict)} missing:" and len(lines) < 20
    more = re.fullmatch(r"    \.\.\. and (\d+) more lines like these", lines[-2])
    assert more and int(more[1]) > 10
    for line in lines[2:-2]:
        name, _, numbers = line.strip().partition(", # = ")
        for entry in numbers.removesuffix("...").split()[:3]:
            digits = iter(entry.split("."))
            assert re.sub("#", lambda _, digits=digits: next(digits), name) in state_dict
        assert numbers or name in state_dict


@pytest.mark.parametrize("part", ["model", "detectron2", "torchvision", "swin"])
def test_common_prefixes_are_removed(part):
    state_dict = tiny_state_dict(tiny_config("swin")) if part == "swin" else tiny()[1]
    if part != "model":
        state_dict = {name[9:]: value for name, value in state_dict.items() if name.startswith("backbone.")}
    if part == "torchvision":
        state_dict = {torchvision_name(name): value for name, value in state_dict.items()}
    assert remove_prefix(state_dict) == (state_dict, "")
    for prefix in ("module.", "model.", "_orig_mod.", "module._orig_mod.", "ema.student.x."):
        renamed, removed = remove_prefix({prefix + name: value for name, value in state_dict.items()})
        assert removed == prefix and list(renamed) == list(state_dict)


def test_several_models_in_a_file_are_refused():
    _, state_dict, _ = tiny()
    for first, second in (("model.", "ema_model."), ("", "module.")):
        both = {first + name: value for name, value in state_dict.items()}
        both |= {second + name: value for name, value in state_dict.items()}
        with pytest.raises(ValueError, match="several models, whose names have the prefixes .* and "):
            remove_prefix(both)


def test_the_message_says_what_fits_best():
    config, state_dict, _ = tiny()
    swin = tiny_config("swin")
    with pytest.raises(ValueError) as error:
        convert_state_dict(state_dict, swin.model)
    line = str(error.value).splitlines()[1]
    blocks = tuple(config.model.backbone.blocks)
    assert line == f"  they fit best: resnet with blocks {blocks} and width {config.model.backbone.width}"
    official = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in OFFICIAL["faseg_r50_ade20k"]["state_dict"].items()
    }
    with pytest.raises(ValueError) as error:
        convert_state_dict(official, swin.model)
    assert "as in the recipe r50; 100 queries, 150 classes" in str(error.value).splitlines()[1].replace(
        "150 classes, 100 queries", "100 queries, 150 classes"
    )
    with pytest.raises(ValueError, match="no name is of a backbone that is known here"):
        convert_state_dict(
            {"decode_head.conv_seg.weight": np.ones((2, 3)), "conv1.weight": np.ones((2, 3))}, swin.model
        )


@pytest.mark.slow
def test_new_class_head():
    config, state_dict, variables = tiny()
    other = copy.deepcopy(config)
    other.model.num_classes = 4
    with pytest.raises(ValueError, match="Only the class head differs"):
        convert_state_dict(state_dict, other.model)
    converted = convert_state_dict(state_dict, other.model, new_class_head=True)
    again = convert_state_dict(state_dict, other.model, new_class_head=True)
    assert_same(converted, again)
    head = converted["params"]["decoder"].pop("class_embed")
    # PyTorch's default of a Linear layer: uniform between -1 / sqrt(inputs) and 1 / sqrt(inputs).
    assert head["kernel"].shape == (32, 5) and head["bias"].shape == (5,)
    assert max(np.abs(head["kernel"]).max(), np.abs(head["bias"]).max()) <= 32**-0.5
    assert head["kernel"].std() == pytest.approx((32 * 3) ** -0.5, rel=0.15)
    rest = jax.tree.map(lambda value: value, variables)  # new dictionaries
    del rest["params"]["decoder"]["class_embed"]
    assert_same(converted, rest)


def test_names_of_older_files():
    config, state_dict, variables = tiny()
    old = {
        name.replace("query_feat", "static_query").replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): value
        for name, value in state_dict.items()
    }
    assert len(old.keys() - state_dict.keys()) > 10
    assert_same(convert_state_dict(old, config.model), variables)
    with pytest.raises(ValueError, match=r"static_query.weight \(is sem_seg_head.predictor.query_feat.weight, which"):
        convert_state_dict(
            state_dict | {name: old[name] for name in old if name.endswith("static_query.weight")}, config.model
        )


def test_names_that_are_not_read():
    config, state_dict, variables = tiny()
    surplus = {
        "criterion.empty_weight": np.ones(20, np.float32),
        "pixel_mean": np.ones(3, np.float32),
        "pixel_std": np.ones(3, np.float32),
        "backbone.stem.conv1.norm.num_batches_tracked": np.array(7),
        "backbone.layers.0.blocks.0.attn.relative_position_index": np.zeros((4, 4), np.int64),
        "backbone.layers.0.blocks.1.attn_mask": np.zeros((4, 4), np.float32),
    }
    assert_same(convert_state_dict(state_dict | surplus, config.model), variables)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_become_float32(dtype):
    config, state_dict, _ = tiny()
    rounded = {name: value.astype(dtype) for name, value in state_dict.items()}
    converted = convert_state_dict(rounded, config.model)
    assert {value.dtype for value in jax.tree.leaves(converted)} == {np.dtype(np.float32)}
    exact = {name: value.astype(np.float32) for name, value in rounded.items()}
    assert_same(converted, convert_state_dict(exact, config.model))


def test_float64_beyond_float32_is_not_finite():
    config, state_dict, _ = tiny()
    name = "sem_seg_head.predictor.decoder_norm.bias"
    with pytest.raises(ValueError, match="1 not finite .*\n *" + name):
        convert_state_dict(state_dict | {name: np.full(32, 1e300)}, config.model)


def torchvision_name(name):
    """Detectron2's name of a ResNet parameter -> torchvision's."""
    name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name.removeprefix("stem."))
    name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
    return name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchvision", "detectron2"])
def test_imagenet_resnet(form):
    config, state_dict, variables = tiny()
    backbone = {name[9:]: value for name, value in state_dict.items() if name.startswith("backbone.")}
    if form == "torchvision":
        backbone = {torchvision_name(name): value for name, value in backbone.items()}
        assert {"conv1.weight", "bn1.bias", "layer4.0.bn2.running_var", "layer1.0.downsample.1.weight"} < set(backbone)
        backbone |= {"fc.weight": np.ones((10, 64)), "bn1.num_batches_tracked": np.array(7)}
    else:
        backbone |= {"stem.fc.weight": np.ones((10, 64)), "stem.fc.bias": np.ones(10)}
    assert not holds_whole_model(backbone) and holds_whole_model(state_dict)
    expected = {
        collection: {"backbone": tree["backbone"]} for collection, tree in variables.items() if "backbone" in tree
    }
    assert_same(convert_backbone(backbone, config.model), expected)
    del backbone["layer4.0.conv3.weight" if form == "torchvision" else "res5.0.conv3.weight"]
    with pytest.raises(ValueError, match="1 missing:\n    (layer4|res5).0.conv3.weight\n"):
        convert_backbone(backbone, config.model)


@pytest.mark.slow
def test_imagenet_swin_keeps_initial_output_norms():
    config = tiny_config("swin")
    state_dict = tiny_state_dict(config)
    whole = convert_state_dict(state_dict, config.model)
    backbone = {name[9:]: value for name, value in state_dict.items() if name.startswith("backbone.")}
    for stage in range(4):
        width = backbone.pop(f"norm{stage}.weight").shape
        del backbone[f"norm{stage}.bias"]
        whole["params"]["backbone"][f"norm{stage}"] = {"scale": np.ones(width), "bias": np.zeros(width)}
    backbone |= {"norm.weight": np.ones(64), "norm.bias": np.ones(64), "head.weight": np.ones((10, 64))}
    backbone |= {"layers.0.blocks.0.attn.relative_position_index": np.zeros((4, 4), np.int64)}
    backbone |= {"layers.1.blocks.1.attn_mask": np.zeros((4, 4), np.float32)}
    assert_same(convert_backbone(backbone, config.model), {"params": {"backbone": whole["params"]["backbone"]}})


def test_every_backbone_has_names_in_other_programs():
    assert FOREIGN_BACKBONES.keys() == BACKBONES.keys()


@pytest.mark.slow
def test_a_backbone_of_another_kind_is_refused_with_all_names():
    config, state_dict, _ = tiny()
    resnet = {name[9:]: value for name, value in state_dict.items() if name.startswith("backbone.")}
    swin = tiny_config("swin")
    wanted = [name for name in tiny_state_dict(swin) if name.startswith("backbone.")]
    for backbone in (resnet, {torchvision_name(name): value for name, value in resnet.items()}):
        with pytest.raises(ValueError) as error:
            convert_backbone(backbone, swin.model)
        # The norms of the four outputs, weight and bias, keep their initial values.
        assert f"{len(wanted) - 8} missing" in str(error.value) and f"{len(resnet)} unexpected" in str(error.value)


def test_torchvision_rules_cover_what_detectron2s_do():
    for name in OFFICIAL["faseg_r50_ade20k"]["state_dict"]:
        if name.startswith("backbone."):
            name = name.removeprefix("backbone.")
            paths = [
                [path for rule in rules if (path := rule.path_of(text))]
                for rules, text in (
                    (DETECTRON2, name),
                    (TORCHVISION, torchvision_name(name)),
                )
            ]
            assert len(paths[0]) == 1 and paths[0] == paths[1]
