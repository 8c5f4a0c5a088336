"""ConvNeXt against transformers: features, names of the programs that have it, folders, and sizes."""

import copy
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fasseg_jax.config import convnext
from fasseg_jax.models.backbones import BACKBONES
from fasseg_jax.models.backbones.convnext import ResponseNorm, depthwise_conv
from fasseg_jax.weights.checkpoint import load_checkpoint
from fasseg_jax.weights.convert import convert
from fasseg_jax.weights.fitting import remove_prefix
from fasseg_jax.weights.state_dict import convert_backbone
from tests.helpers.derivatives import assert_equal, values_and_gradients, values_and_gradients_of_pytorch
from tests.helpers.tiny import tiny_config

STAGES = ["stage1", "stage2", "stage3", "stage4"]
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 96, 3)).astype(np.float32)
CONFIGS = {1: transformers.ConvNextConfig, 2: transformers.ConvNextV2Config}
CLASSIFIERS = {1: transformers.ConvNextForImageClassification, 2: transformers.ConvNextV2ForImageClassification}


def config_of(version):
    config = tiny_config("convnext")
    config.model.backbone.version = version
    return config


def random_model(version, model_type=transformers.AutoBackbone.from_config, **fields):
    """A model of transformers without initial values, such as zero, that would hide mistakes."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 2, 1, 1], "out_features": STAGES, **fields}
    model = model_type(CONFIGS[version](**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.squeeze().ndim == 1:
                parameter += 0.5 * torch.randn(parameter.shape)
            elif "patch_embeddings" not in name:
                parameter *= 5  # otherwise the branches add next to nothing
    return model


def arrays_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def features_of(model, images):
    with torch.no_grad():
        maps = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).feature_maps
    return [x.numpy().transpose(0, 2, 3, 1) for x in maps]


def backbone_of(config, dtype=jnp.float32):
    fields = {name: value for name, value in config.model.backbone.items() if name != "kind"}
    return BACKBONES["convnext"](**fields, dtype=dtype)


def compute(config, variables, dtype=jnp.float32):
    variables = {"params": variables["params"]["backbone"]}
    with jax.default_matmul_precision("highest"):
        return [np.asarray(x, np.float32) for x in jax.jit(backbone_of(config, dtype).apply)(variables, IMAGES)]


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_features_are_those_of_transformers(version):
    model, config = random_model(version), config_of(version)
    variables = convert_backbone(arrays_of(model), config.model)
    found, expected = compute(config, variables), features_of(model, IMAGES)
    assert [x.shape for x in found] == [(2, 64 // s, 96 // s, 8 * s // 4) for s in (4, 8, 16, 32)]
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.std() > 0.3
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    for ours, theirs in zip(compute(config, variables, jnp.bfloat16), expected, strict=True):
        assert np.sqrt(np.square(ours - theirs).mean()) < BFLOAT16 * theirs.std()


BFLOAT16 = 0.02  # bound on the root mean square of the error in bfloat16, as a share of the features' deviation


def meta_name(name):
    """transformers' name of a parameter -> that of ConvNeXt's authors."""
    for pattern, replacement in (
        (r"^embeddings\.patch_embeddings", "downsample_layers.0.0"),
        (r"^embeddings\.layernorm", "downsample_layers.0.1"),
        (r"^encoder\.stages\.(\d)\.downsampling_layer", r"downsample_layers.\1"),
        (r"^encoder\.stages\.(\d)\.layers", r"stages.\1"),
        (r"^hidden_states_norms\.stage(\d)", lambda match: f"norm{int(match[1]) - 1}"),
        (r"\.layernorm\.", ".norm."),
        ("layer_scale_parameter", "gamma"),
        (r"grn\.weight", "grn.gamma"),
        (r"grn\.bias", "grn.beta"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def timm_name(name):
    for pattern, replacement in (
        (r"^downsample_layers\.0", "stem"),
        (r"^downsample_layers\.(\d)", r"stages.\1.downsample"),
        (r"^stages\.(\d)\.(\d+)", r"stages.\1.blocks.\2"),
        ("dwconv", "conv_dw"),
        (r"pwconv(\d)", r"mlp.fc\1"),
        (r"grn\.gamma", "mlp.grn.weight"),
        (r"grn\.beta", "mlp.grn.bias"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_names_of_other_programs(version):
    config = config_of(version)
    names = arrays_of(random_model(version))
    expected = convert_backbone(names, config.model)["params"]["backbone"]
    meta = {meta_name(name): value for name, value in names.items()}
    assert {"downsample_layers.3.1.weight", "stages.1.1.pwconv2.bias", "norm3.weight"} < meta.keys()
    timm = {timm_name(name): value for name, value in meta.items() if not re.match(r"norm\d", name)}
    timm = {name: value.reshape(-1) if ".grn." in name else value for name, value in timm.items()}
    head = {
        "head.weight": np.ones((5, 64)),
        "head.bias": np.ones(5),
        "norm.weight": np.ones(64),
        "norm.bias": np.ones(64),
    }
    timm |= {name.replace("head.", "head.fc.").replace("norm.", "head.norm."): value for name, value in head.items()}
    assert jax.tree.all(
        jax.tree.map(np.array_equal, convert_backbone(meta | head, config.model)["params"], {"backbone": expected})
    )
    from_timm = convert_backbone(timm, config.model)["params"]["backbone"]
    for stage in range(4):  # their initial values
        np.testing.assert_array_equal(from_timm[f"norm{stage}"]["scale"], 1)
        from_timm[f"norm{stage}"] = expected[f"norm{stage}"]
    assert jax.tree.all(jax.tree.map(np.array_equal, from_timm, expected))
    for state_dict in (names, meta, timm):
        renamed, prefix = remove_prefix({f"module.{name}": value for name, value in state_dict.items()})
        assert prefix == "module." and renamed.keys() == state_dict.keys()
    other = config_of(version)
    other.model.backbone.width = 16
    for state_dict in (names, meta, timm):
        with pytest.raises(ValueError, match=r"fit best: convnext with blocks \(1, 2, 1, 1\) and width 8\n"):
            convert_backbone(state_dict, other.model)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_transformers(version, tmp_path):
    model, config = random_model(version, CLASSIFIERS[version]), config_of(version)
    model.save_pretrained(tmp_path / "theirs")
    folder, output = str(tmp_path / "theirs"), str(tmp_path / "ours")
    with pytest.raises(ValueError, match="holds only a backbone; --config is needed"):
        convert(None, folder, output)
    with pytest.raises(ValueError, match="leave out --new_class_head"):
        convert(config, folder, output, new_class_head=True)
    other = copy.deepcopy(config)
    other.model.backbone.update(width=16, version=3 - version)
    with pytest.raises(ValueError, match="--config has another backbone") as error:
        convert(other, folder, output)
    assert [line.split()[0] for line in str(error.value).splitlines()[1:]] == [
        f"config.model.backbone.{field}" for field in ("version", "width")
    ]
    summary = convert(config, folder, output)
    assert "a training can start from this backbone" in summary
    checkpoint = load_checkpoint(output)
    names = {name.partition(".")[2]: value for name, value in arrays_of(model).items() if "." in name}
    names = {name: value for name, value in names.items() if name.startswith(("embeddings", "encoder"))}
    expected = convert_backbone(names, config.model)
    assert checkpoint.contents == "backbone"
    assert jax.tree.all(jax.tree.map(np.array_equal, checkpoint.variables, expected))

    file = tmp_path / "theirs" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 2, "hidden_sizes": [8, 16, 32, 65]}))
    with pytest.raises(ValueError) as error:
        convert(config, folder, output)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{folder}: this network does not support the backbone:"
    assert [line.split()[0] for line in lines[1:]] == ["patch_size", "hidden_sizes"]


@pytest.mark.parametrize(
    ("size", "version", "published"),
    [
        *(("t", 1, 28_589_128), ("s", 1, 50_223_688), ("b", 1, 88_591_464), ("l", 1, 197_767_336)),
        *(("t", 2, 28_635_496), ("b", 2, 88_717_800), ("l", 2, 197_956_840)),
    ],
)
def test_parameter_counts(size, version, published):
    """The classifiers' published counts, less a last norm and a head of 1000 classes, plus the norms of four maps."""
    config = tiny_config("convnext")
    config.model.backbone = convnext(size, version)
    shapes = jax.eval_shape(lambda: backbone_of(config).init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    widths = [config.model.backbone.width * 2**stage for stage in range(4)]
    expected = published - 2 * widths[-1] - (widths[-1] + 1) * 1000 + 2 * sum(widths)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_depthwise_convolution():
    rng = np.random.default_rng(0)
    x, kernel = (
        rng.standard_normal((2, 9, 4, 5)).astype(np.float32),
        rng.standard_normal((7, 7, 1, 5)).astype(np.float32),
    )

    def theirs(x, kernel):
        y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=3, groups=5)
        return y.permute(0, 2, 3, 1)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            *(x, kernel, (1, 1), "SAME"), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=5
        )

    found = values_and_gradients(depthwise_conv, x, kernel)
    assert_equal(found, values_and_gradients_of_pytorch(theirs, x, kernel), 3e-5)
    assert_equal(found, values_and_gradients(plain, x, kernel), 3e-5)
    half = depthwise_conv(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    np.testing.assert_allclose(half.astype(jnp.float32), plain(x, kernel), atol=0.1)


def test_response_norm_of_nothing_has_a_gradient():
    """A channel that is zero everywhere has no response, and its norm no derivative."""
    x = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(2.0)
    module = ResponseNorm(jnp.float32)
    params = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
    value, gradient = jax.value_and_grad(lambda x: module.apply(params, x).sum())(x)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 4 * (2 + 2 * 3), rtol=1e-5)  # norms 4, 0, 0: the response of the first is 3


@pytest.mark.slow
def test_drop_path_drops_whole_branches():
    """In training with a rate of almost 1, only the shortcuts are left; without training nothing is dropped."""
    config = config_of(1)
    config.model.backbone.update(drop_path=0.999999, blocks=(1, 1, 1, 2))
    module = backbone_of(config)
    variables = jax.jit(module.init)(jax.random.key(0), IMAGES)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
    last = variables["params"]["stage3_block1"]
    without = {**variables["params"], "stage3_block1": jax.tree.map(jnp.zeros_like, last)}
    rngs = {"dropout": jax.random.key(0)}
    apply = jax.jit(module.apply, static_argnames="train")
    trained = apply(variables, IMAGES, train=True, rngs=rngs)
    np.testing.assert_array_equal(trained[3], apply({"params": without}, IMAGES, train=True, rngs=rngs)[3])
    assert not np.allclose(apply(variables, IMAGES)[3], apply({"params": without}, IMAGES)[3], atol=1e-3)
