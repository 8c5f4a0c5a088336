"""Vision Transformers of DINOv2 and DINOv3 against transformers and PyTorch: tokens, pyramid, names and folders."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from fasseg_jax.config import vit
from fasseg_jax.models.backbones import BACKBONES
from fasseg_jax.models.backbones.vit import Pyramid, bicubic
from fasseg_jax.weights.checkpoint import load_checkpoint
from fasseg_jax.weights.convert import convert
from fasseg_jax.weights.fitting import remove_prefix
from fasseg_jax.weights.state_dict import convert_backbone, convert_state_dict, to_state_dict
from tests.helpers.tiny import tiny_config
from tests.helpers.weight_cases import tiny_state_dict

IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
DINOV2 = {"image_size": 518, "patch_size": 14, "mlp_ratio": 2}
DINOV3 = {"patch_size": 16, "intermediate_size": 64}

# Name -> our fields, and transformers' configuration.
MODELS = {
    "dinov2": ({}, transformers.Dinov2Config(**SIZES, **DINOV2)),
    "dinov2_registers": (
        {"num_registers": 4},
        transformers.Dinov2WithRegistersConfig(**SIZES, **DINOV2, num_register_tokens=4),
    ),
    "dinov2_giant": (
        {"gated": True, "mlp_width": 48},
        transformers.Dinov2Config(**SIZES, **DINOV2, use_swiglu_ffn=True),
    ),
    "dinov3": (
        {"version": 3, "patch_size": 16, "num_registers": 4},
        transformers.DINOv3ViTConfig(**SIZES, **DINOV3, num_register_tokens=4),
    ),
    "dinov3_gated": (
        {"version": 3, "patch_size": 16, "num_registers": 4, "gated": True, "attention_bias": False},
        transformers.DINOv3ViTConfig(
            **SIZES,
            **DINOV3,
            num_register_tokens=4,
            use_gated_mlp=True,
            hidden_act="silu",
            query_bias=False,
            value_bias=False,
        ),
    ),
}
BFLOAT16 = 0.02  # bound on the root mean square of the error in bfloat16, as a share of the tokens' deviation


def config_of(name):
    config = tiny_config("vit")
    config.model.backbone.update({"width": 32, "depth": 3, "num_heads": 2, "mlp_width": 64, **MODELS[name][0]})
    return config


def random_model(name):
    """A model of transformers without initial values, such as zero, that would hide mistakes."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(MODELS[name][1]).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "patch_embeddings" not in parameter_name:
                parameter += 0.2 * torch.randn(parameter.shape)
    if name in ("dinov2", "dinov2_giant"):
        model.embeddings.interpolate_pos_encoding = lambda tokens, height, width: official_positions(
            model.embeddings.position_embeddings, height // 14, width // 14
        )
    return model


def official_positions(table, rows, columns):
    """The positions of the official DINOv2 without registers, which transformers resizes in another way."""
    side = math.isqrt(table.shape[1] - 1)
    if rows == columns == side:
        return table
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scales = [(size + 0.1) / side for size in (rows, columns)]
    resized = functional.interpolate(grid, scale_factor=scales, mode="bicubic").permute(0, 2, 3, 1)
    assert resized.shape[1:3] == (rows, columns)
    return torch.cat([table[:, :1], resized.flatten(1, 2)], dim=1)


def arrays_of(model):
    """The names in the files of transformers, which are not those in the memory of its version 5."""
    names = {name: value.numpy() for name, value in model.state_dict().items()}
    renamed = {}
    for name, value in names.items():
        if isinstance(model.config, transformers.DINOv3ViTConfig):
            name = name.removeprefix("model.")
        else:
            name = re.sub(r"attention\.([qkv])_proj", lambda m: f"attention.attention.{LONG[m[1]]}", name)
            name = name.replace("attention.o_proj", "attention.output.dense").replace("down_proj", "weights_out")
            if "gate_proj" in name:
                value = np.concatenate([value, names[name.replace("gate_proj", "up_proj")]])
                name = name.replace("gate_proj", "weights_in")
            if "up_proj" in name:
                continue
        renamed[name] = value
    return renamed


LONG = {"q": "query", "k": "key", "v": "value"}


def tokens_of(model, images):
    patch = model.config.patch_size
    bottom, right = (-size % patch for size in images.shape[1:3])
    images = np.pad(images, ((0, 0), (0, bottom), (0, right), (0, 0))).transpose(0, 3, 1, 2)
    with torch.no_grad():
        return model(torch.from_numpy(images.copy())).last_hidden_state.numpy()


def backbone_of(config, dtype=jnp.float32):
    fields = {name: value for name, value in config.model.backbone.items() if name != "kind"}
    return BACKBONES["vit"](**fields, dtype=dtype)


def compute(config, variables, images, dtype=jnp.float32):
    """The tokens before the pyramid, and its maps."""
    variables = {"params": variables["params"]["backbone"]}

    @jax.jit
    def apply(variables, images):
        return backbone_of(config, dtype).apply(
            variables, images, capture_intermediates=lambda module, _: module.name == "norm"
        )

    with jax.default_matmul_precision("highest"):
        maps, state = apply(variables, images)
    return np.asarray(state["intermediates"]["norm"]["__call__"][0], np.float32), maps


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_transformers(name):
    model, config = random_model(name), config_of(name)
    variables = convert_backbone(arrays_of(model), config.model)
    expected = tokens_of(model, IMAGES)
    assert expected.std() > 0.3
    tokens, maps = compute(config, variables, IMAGES)
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=5e-5)
    assert [x.shape[1:] for x in maps] == [(16, 24, 8), (8, 12, 16), (4, 6, 32), (2, 3, 32)]
    half, _ = compute(config, variables, IMAGES, jnp.bfloat16)
    assert np.sqrt(np.square(half - expected).mean()) < BFLOAT16 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers"])
def test_the_position_table_is_used_as_it_is_at_its_own_size(name):
    model, config = random_model(name), config_of(name)
    images = np.random.default_rng(1).standard_normal((1, 518, 518, 3)).astype(np.float32)
    tokens, _ = compute(config, convert_backbone(arrays_of(model), config.model), images)
    np.testing.assert_allclose(tokens, tokens_of(model, images), rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [(5, 7), (37, 40), (64, 20)])
def test_positions_are_resized_as_pytorch_does(size):
    table = np.random.default_rng(0).standard_normal((37, 37, 3)).astype(np.float32)
    theirs = official_positions(torch.from_numpy(np.concatenate([table[0, :1], table.reshape(-1, 3)])[None]), *size)
    ours = bicubic(jnp.asarray(table), *size, offset=0.1)
    np.testing.assert_allclose(ours.reshape(-1, 3), theirs[0, 1:].numpy(), atol=2e-5)


def test_pyramid():
    """The four maps of random tokens against PyTorch, with an odd number of rows."""
    config = config_of("dinov3")
    state_dict = {name.removeprefix("backbone."): value for name, value in tiny_state_dict(config).items()}
    variables = convert_state_dict(tiny_state_dict(config), config.model)
    x = np.random.default_rng(0).standard_normal((1, 5, 6, 32)).astype(np.float32)
    params = jax.tree.map(jnp.asarray, variables["params"]["backbone"]["pyramid"])
    ours = Pyramid(jnp.float32).apply({"params": params}, jnp.asarray(x))
    weights = {name: torch.from_numpy(value.copy()) for name, value in state_dict.items() if "pyramid" in name}
    image = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def double(x, name):
        weight, bias = weights[f"pyramid.{name}.weight"], weights[f"pyramid.{name}.bias"]
        return functional.conv_transpose2d(x, weight, bias, stride=2)

    y = double(image, "four_0").permute(0, 2, 3, 1)
    y = functional.layer_norm(y, (16,), weights["pyramid.four_norm.weight"], weights["pyramid.four_norm.bias"], 1e-6)
    four = double(functional.gelu(y).permute(0, 3, 1, 2), "four_1")
    expected = [four, double(image, "two"), image, functional.max_pool2d(image, 2, ceil_mode=True)]
    for actual, map_ in zip(ours, expected, strict=True):
        np.testing.assert_allclose(actual, map_.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_maps_of_patches_of_14_are_resampled_at_the_pixels_own_places(stride):
    """A map that holds the places of its own pixels in the image, then holds those of the pixels of the stride."""
    own, length = stride * 14 / 16, 448
    module = backbone_of(config_of("dinov2"))
    places = (np.arange(int(length / own)) + 0.5) * own  # 448 pixels are whole patches and whole strides
    x = np.broadcast_to(places[None, :, None, None], (1, len(places), len(places), 1)).astype(np.float32)
    resampled = module._resample(jnp.asarray(x), (length // stride, length // stride))
    np.testing.assert_allclose(resampled[0, :, 3, 0], (np.arange(length // stride) + 0.5) * stride, rtol=1e-5)


# Names


def meta_names(names, config):
    """transformers' names of DINOv2 or DINOv3 -> those of Meta's programs, which pack queries, keys and values."""
    version = config.model.backbone.version
    renamed = {}
    for name, value in names.items():
        for pattern, replacement in (
            (r"^embeddings\.position_embeddings", "pos_embed"),
            (r"^embeddings\.register_tokens", "register_tokens" if version == 2 else "storage_tokens"),
            (r"^embeddings\.patch_embeddings(\.projection)?", "patch_embed.proj"),
            (r"^embeddings\.", ""),
            (r"^(encoder\.)?layer\.", "blocks."),
            (r"attention\.(output\.dense|o_proj)", "attn.proj"),
            (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
            (r"^layernorm", "norm"),
            (r"mlp\.weights_in", "mlp.w12"),
            (r"mlp\.weights_out", "mlp.w3"),
            (r"mlp\.gate_proj", "mlp.w1"),
            (r"mlp\.up_proj", "mlp.w2" if config.model.backbone.gated else "mlp.fc1"),
            (r"mlp\.down_proj", "mlp.w3" if config.model.backbone.gated else "mlp.fc2"),
        ):
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    packed = {}
    for name, value in renamed.items():
        if match := re.fullmatch(r"(blocks\.\d+)\.(attention\.)+(query|q_proj)\.(weight|bias)", name):
            query = match[3]
            key, value_ = {"query": ("key", "value"), "q_proj": ("k_proj", "v_proj")}[query]
            parts = [renamed.get(name.replace(query, part), 5 * np.ones_like(value)) for part in (query, key, value_)]
            packed[f"{match[1]}.attn.qkv.{match[4]}"] = np.concatenate(parts)
            if version == 3 and match[4] == "bias":
                packed[f"{match[1]}.attn.qkv.bias_mask"] = np.repeat([1, 0, 1], len(value)).astype(np.float32)
        elif ".attention." not in name:
            packed[name] = value
    if version == 3:
        packed["rope_embed.periods"] = (100 ** (np.arange(4) / 4)).astype(np.float32)
    return packed


def timm_names(names, config):
    renamed = {}
    for name, value in names.items():
        name = name.replace("register_tokens", "reg_token").replace("storage_tokens", "reg_token")
        if config.model.backbone.version == 3:
            name = re.sub(r"ls(\d)\.gamma", r"gamma_\1", name)
            for part, other in (("w1", "fc1_g"), ("w2", "fc1_x"), ("w3", "fc2")):
                name = name.replace(f"mlp.{part}.", f"mlp.{other}.")
        renamed[name] = value
    if config.model.backbone.version == 2 and config.model.backbone.num_registers:
        renamed["cls_token"] = names["cls_token"] + names["pos_embed"][:, :1]
        renamed["pos_embed"] = names["pos_embed"][:, 1:]
    return {name: value for name, value in renamed.items() if "mask" not in name and "rope" not in name}


def same(tree, other):
    return jax.tree.all(jax.tree.map(np.array_equal, tree, other))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_names_of_other_programs(name):
    config, names = config_of(name), arrays_of(random_model(name))
    expected = convert_backbone(names, config.model)
    assert "pyramid" in expected["params"]["backbone"]
    meta = meta_names(names, config)
    assert same(convert_backbone(meta, config.model), expected)
    forms = [names, meta]
    if name != "dinov2_giant":
        timm = timm_names(meta, config)
        if name == "dinov3":  # timm's qkv of this kind has no bias
            timm = {key: value for key, value in timm.items() if "qkv.bias" not in key}
            config.model.backbone.attention_bias = False
            for block in ("block0", "block1", "block2"):
                del expected["params"]["backbone"][block]["attention"]["qkv_bias"]
        found = convert_backbone(timm, config.model)
        if name == "dinov2_registers":  # timm adds the class token's position to the token
            ours = expected["params"]["backbone"]
            ours["class_token"] = ours["class_token"] + ours["position_table"][0]
            ours["position_table"] = np.concatenate([np.zeros((1, 32), np.float32), ours["position_table"][1:]])
        assert same(found, expected)
        forms.append(timm)
    other = config_of(name)
    other.model.backbone.update(width=64, mlp_width=128)
    for state_dict in forms:
        renamed, prefix = remove_prefix({f"module.{key}": value for key, value in state_dict.items()})
        assert prefix == "module." and renamed.keys() == state_dict.keys()
        with pytest.raises(ValueError, match=r"fit best: vit with blocks \(3,\) and width 32\n"):
            convert_backbone(state_dict, other.model)


@pytest.mark.slow
def test_a_mask_or_frequencies_that_are_not_dinov3s_are_refused():
    config = config_of("dinov3")
    meta = meta_names(arrays_of(random_model("dinov3")), config)
    for name, value in (
        ("blocks.1.attn.qkv.bias_mask", np.ones(96, np.float32)),
        ("blocks.1.attn.qkv.bias_mask", np.full(96, np.nan, np.float32)),
        ("blocks.1.attn.qkv.bias_mask", np.ones((), np.float32)),
        ("blocks.7.attn.qkv.bias_mask", np.ones(96, np.float32)),
        ("rope_embed.periods", np.ones(4, np.float32)),
        ("rope_embed.periods", np.zeros(0, np.float32)),
    ):
        with pytest.raises(ValueError, match=f"{name} (is|are) not th"):
            convert_backbone(meta | {name: value}, config.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_under_the_names_of_the_official_program(name):
    config = config_of(name)
    state_dict = tiny_state_dict(config)
    back = to_state_dict(convert_state_dict(state_dict, config.model), config.model)
    assert back.keys() == state_dict.keys()
    assert all(np.array_equal(value, state_dict[key]) for key, value in back.items())


# Folders


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_transformers(name, tmp_path):
    model, config = random_model(name), config_of(name)
    model.save_pretrained(tmp_path / "theirs")
    folder, output = str(tmp_path / "theirs"), str(tmp_path / "ours")
    convert(config, folder, output)
    checkpoint = load_checkpoint(output)
    assert checkpoint.contents == "backbone"
    assert same(checkpoint.variables, convert_backbone(arrays_of(model), config.model))
    config.model.backbone.num_registers += 1
    with pytest.raises(ValueError, match=r"config.model.backbone.num_registers is \d, but \d in the folder"):
        convert(config, folder, str(tmp_path / "other"))
    file = tmp_path / "theirs" / "config.json"
    wrong = {"hidden_act": "relu", "layer_norm_eps": 1e-3, "num_channels": 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(ValueError, match="does not support the backbone") as error:
        convert(config, folder, str(tmp_path / "other"))
    assert sorted(line.split()[0] for line in str(error.value).splitlines()[1:]) == sorted(wrong)


@pytest.mark.parametrize(
    ("arguments", "published"),
    [
        *((("s", 2), 22_056_576), (("b", 2), 86_580_480), (("l", 2), 304_368_640), (("g", 2), 1_136_480_768)),
        *((("s", 3), 21_596_544), (("b", 3), 85_660_416), (("l", 3), 303_129_600)),
    ],
)
def test_parameter_counts(arguments, published):
    """Of the published networks, with a mask token, which is not used here."""
    config = tiny_config("vit")
    config.model.backbone = vit(*arguments)
    shapes = jax.eval_shape(lambda: backbone_of(config).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))["params"]
    del shapes["pyramid"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) + config.model.backbone.width == published
