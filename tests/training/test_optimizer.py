"""Groups of parameters, the schedule and the update, against the recipe written out in numpy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from fasseg_jax import build_model, load_config
from fasseg_jax.models.fasseg import initial_variables
from fasseg_jax.ops.activations import gelu_matmul
from fasseg_jax.training.optimizer import (
    gradient_norm,
    layer_scales,
    learning_rate_schedule,
    make_optimizer,
    parameter_groups,
)
from tests.helpers.tiny import tiny_config as make_tiny_config


@pytest.mark.parametrize(
    "path",
    [
        "configs/ade20k.py:mask2former_swin_t",
        pytest.param("configs/ade20k.py:swin_b", marks=pytest.mark.slow),
        pytest.param("configs/cityscapes.py:r101", marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:convnext_t", marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:convnextv2_t", marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:dinov2r_s", marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:dinov3_s", marks=pytest.mark.slow),
    ],
)
def test_every_parameter_has_one_group(path):
    model = build_model(load_config(path).model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    groups = jax.tree_util.tree_leaves_with_path(parameter_groups(shapes["params"]))
    for path, group in groups:
        names = [key.key for key in path]
        assert group.startswith("backbone") == (names[0] == "backbone" and names[1] != "pyramid")
        norm = len(names) > 1 and "norm" in names[-2]
        table = names[-1] in ("relative_position_bias", "query_feat", "query_embed", "gamma")
        table = table or names[-1] in ("class_token", "registers", "position_table")
        decoder_levels = names == ["decoder", "level_embed"]
        assert group.endswith("fixed") == (norm or table or decoder_levels), names


def test_unknown_parameters_are_refused():
    with pytest.raises(ValueError, match=r"exactly one rule .*: decoder/new_table \(no rule\)"):
        parameter_groups({"decoder": {"new_table": 1, "query_feat": 1}})


def test_modules_outside_of_the_model_are_refused():
    with pytest.raises(ValueError, match=r"backbone or pixel_decoder or decoder .*: neck/conv/kernel"):
        parameter_groups({"neck": {"conv": {"kernel": 1}}})


def test_the_name_decides_in_a_backbone_of_any_kind():
    """Layer scale (`gamma`) and norms of other names need no new rule."""
    block = {"norm": {"scale": 1, "bias": 1}, "dwconv": {"kernel": 1, "bias": 1}, "gamma": 1}
    groups = parameter_groups({"backbone": {"stage0_block0": block, "stem_norm": {"scale": 1}}})
    assert groups["backbone"] == {
        "stage0_block0": {
            "norm": {"scale": "backbone_fixed", "bias": "backbone_fixed"},
            "dwconv": {"kernel": "backbone", "bias": "backbone"},
            "gamma": "backbone_fixed",
        },
        "stem_norm": {"scale": "backbone_fixed"},
    }


@pytest.mark.parametrize("name", ["norm/gamma", "attention/scale", "norm1/kernel"])
def test_a_known_name_in_the_wrong_kind_of_module_is_refused(name):
    module, leaf = name.split("/")
    with pytest.raises(ValueError, match="no rule"):
        parameter_groups({"backbone": {module: {leaf: 1}}})


def test_updates():
    """Two steps of clipping, AdamW by groups and polynomial decay."""
    config = load_config("configs/ade20k.py:r50")
    config.train.steps = 5
    params = {
        "backbone": {"conv1": {"kernel": np.float32([1.0, -2.0])}, "norm1": {"scale": np.float32([0.5])}},
        "decoder": {"class_embed": {"bias": np.float32([3.0])}, "query_feat": np.float32([-1.0])},
    }
    rates = {"backbone": {"conv1": {"kernel": 1e-5}, "norm1": {"scale": 1e-5}}}
    rates["decoder"] = {"class_embed": {"bias": 1e-4}, "query_feat": 1e-4}
    decays = {"backbone": {"conv1": {"kernel": 0.05}, "norm1": {"scale": 0}}}
    decays["decoder"] = {"class_embed": {"bias": 0.05}, "query_feat": 0}

    optimizer = make_optimizer(config, params)
    ours, state = params, optimizer.init(params)
    expected = jax.tree.map(np.float64, params)
    first = second = jax.tree.map(lambda p: np.zeros(p.shape), params)
    for t, size in enumerate((1.0, 1e-3)):  # the second gradient is below the norm that is clipped
        gradient = jax.tree.map(lambda p, s=size: s * (p + 1), params)
        updates, state = optimizer.update(gradient, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)

        norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
        clipped = jax.tree.map(lambda g, n=norm: g * min(1, 0.01 / n), gradient)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, clipped)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, clipped)
        decay = (1 - t / 5) ** 0.9

        def updated(p, m, v, rate, weight_decay, t=t, decay=decay):
            step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
            return p - decay * rate * (step + weight_decay * p)

        expected = jax.tree.map(updated, expected, first, second, rates, decays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, expected)


# The published rules, under the names of their programs.


def beit_layer(name, depth):
    """BEiT's and MAE's: the layer of a parameter of a ViT; the head is layer depth + 1."""
    if name in ("cls_token", "pos_embed", "register_tokens", "storage_tokens") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks") else depth + 1


def simmim_layer(name, depths):
    """SimMIM's, of a Swin."""
    parts = name.split(".")
    if parts[0] == "patch_embed":
        return 0
    if parts[0] == "layers":
        stage = int(parts[1])
        return sum(depths[:stage]) + int(parts[3]) + 1 if parts[2] == "blocks" else sum(depths[: stage + 1])
    return sum(depths) + 1


def convnext_layer(name, last):
    """ConvNeXt's "layer_wise"; `last` is 6 for nine blocks in the third stage, and 12 for 27."""
    kind, *rest = name.split(".")
    if kind == "downsample_layers":
        return {0: 0, 1: 2, 2: 3, 3: last}[int(rest[0])]
    if kind == "stages":
        return {0: 1, 1: 2, 2: 3 + int(rest[1]) // 3, 3: last}[int(rest[0])]
    return last + 1


def resnet_layer(name, blocks):
    """Nobody has published one: each block is a layer, as in timm."""
    kind, *rest = name.split(".")
    if kind == "stem":
        return 0
    return sum(blocks[: int(kind[3:]) - 2]) + int(rest[0]) + 1 if kind.startswith("res") else sum(blocks) + 1


RULES = {  # kind of backbone -> the published rule, and our names of modules as it knows them
    "vit": (
        lambda name: beit_layer(name, 12),
        [
            ("class_token", "cls_token"),
            ("position_table", "pos_embed"),
            ("registers", "register_tokens"),
            ("patches", "patch_embed"),
            (r"block(\d+)", r"blocks.\1"),
        ],
    ),
    "swin": (
        lambda name: simmim_layer(name, (2, 2, 18, 2)),
        [
            (r"patch_\w+", "patch_embed"),
            (r"stage(\d)_block(\d+)", r"layers.\1.blocks.\2"),
            (r"stage(\d)_merge", r"layers.\1.downsample"),
        ],
    ),
    "convnext": (
        lambda name: convnext_layer(name, 12),
        [
            (r"patch_\w+", "downsample_layers.0"),
            (r"stage(\d)_block(\d+)", r"stages.\1.\2"),
            (r"stage(\d)_downsample(_norm)?", r"downsample_layers.\1"),
        ],
    ),
    "resnet": (
        lambda name: resnet_layer(name, (3, 4, 6, 3)),
        [(r"stem_\w+", "stem"), (r"(res\d)_(\d+)", r"\1.\2")],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "layers"), [("dinov2r_s", 14), ("dinov3_s", 14), ("swin_s", 26), ("convnext_s", 14), ("r50", 18)]
)
def test_layer_wise_decay_is_that_of_the_published_programs(variant, layers):
    config = load_config(f"configs/ade20k.py:{variant}")
    config.optimizer.layer_decay = 0.8
    shapes = jax.eval_shape(lambda: initial_variables(build_model(config.model), 0))["params"]
    layer_of, names = RULES[config.model.backbone.kind]
    found = {"/".join(path): scale for path, scale in flatten_dict(layer_scales(config, shapes)).items()}
    seen = set()
    for path, scale in found.items():
        part, module = path.split("/")[:2]
        layer = layers - 1  # of the heads
        if part == "backbone":
            for pattern, replacement in names:
                if re.fullmatch(pattern, module):
                    module = re.sub(pattern, replacement, module)
                    break
            layer = layer_of(module)
        seen.add(layer)
        np.testing.assert_allclose(scale, 0.8 ** (layers - 1 - layer), err_msg=path)
    assert seen == set(range(layers))


@pytest.mark.parametrize("backbone", ["convnext", "resnet", "swin", "vit"])
def test_layers_name_modules_that_exist(backbone):
    config = make_tiny_config(backbone)
    shapes = jax.eval_shape(lambda: initial_variables(build_model(config.model), 0))
    modules = {name for collection in shapes.values() for name in collection.get("backbone", {})}
    named = [name for names in build_model(config.model).backbone.layers() for name in names]
    assert len(named) == len(set(named)) and set(named) - modules <= {"registers", "position_table"}
    assert not any(re.match("norm|pyramid", name) for name in named)


def test_updates_with_layer_wise_decay():
    """Each update is that without decay, times a power of the decay. The state is the same."""
    config = make_tiny_config("vit")  # two blocks
    leaf = lambda: {"kernel": np.float32([1.0, -2.0])}
    params = {
        "backbone": {
            "patches": leaf(),
            "block0": {"fc1": leaf()},
            "block1": {"fc1": leaf()},
            "norm": {"scale": np.ones(1)},
        },
        "decoder": {"class_embed": leaf()},
    }
    gradients = jax.tree.map(lambda leaf: leaf + 1, params)
    plain, plain_state = one_update(config, params, gradients)
    config.optimizer.layer_decay = 0.5
    decayed, state = one_update(config, params, gradients)
    scales = {
        "backbone": {
            "patches": {"kernel": 1 / 8},
            "block0": {"fc1": {"kernel": 1 / 4}},
            "block1": {"fc1": {"kernel": 1 / 2}},
            "norm": {"scale": 1},
        },
        "decoder": {"class_embed": {"kernel": 1}},
    }
    jax.tree.map(lambda a, b, scale: np.testing.assert_allclose(a, b * scale, rtol=1e-6), decayed, plain, scales)
    jax.tree.map(np.testing.assert_array_equal, state, plain_state)


def one_update(config, params, gradients):
    optimizer = make_optimizer(config, params)
    return optimizer.update(gradients, optimizer.init(params), params)


def test_schedule():
    config = load_config("configs/cityscapes.py:r50")
    schedule = learning_rate_schedule(config)
    for t in (0, 1, 45_000, 89_999, 90_000):
        # float32: to a millionth of the base rate
        np.testing.assert_allclose(schedule(t), 1e-4 * (1 - t / 90_000) ** 0.9, rtol=0, atol=1e-10)


def test_schedule_with_warmup():
    config = load_config("configs/cityscapes.py:r50")
    config.optimizer.warmup_steps = 100
    schedule = learning_rate_schedule(config)
    for t in (0, 1, 50, 99, 100, 45_000, 90_000):
        expected = 1e-4 * (1 - t / 90_000) ** 0.9 * min(1, (t + 1) / 100)
        np.testing.assert_allclose(schedule(t), expected, rtol=0, atol=1e-10)


def test_gradient_norm_is_that_of_all_gradients():
    rng = np.random.default_rng(0)
    leaf = lambda: rng.standard_normal(50).astype(np.float32)
    gradients = {
        "backbone": {"res2_0": {"conv1": {"kernel": leaf()}}, "stem_conv": {"kernel": leaf()}},
        "pixel_decoder": {"encoder_0": {"norm1": {"bias": leaf()}}, "level_embed": leaf()},
        "decoder": {"layer_9": {"linear1": {"bias": leaf()}}, "layer_10": {"linear1": {"bias": leaf()}}},
    }
    expected = np.sqrt(sum(np.square(x.astype(np.float64)).sum() for x in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(gradient_norm(gradients), expected, rtol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA's scheduler for CPUs")
def test_gradient_norm_lets_a_backward_pass_forget():
    """If the sum began with the first layer, XLA would keep the activations of all layers until the end."""
    rows, width, layers = 2048, 64, 12
    params = {"backbone": {f"stage0_block{i}": {"fc2": jnp.ones((width, width))} for i in range(layers)}}

    def loss(params, x):
        for i in range(layers):
            x = x + gelu_matmul(x, params["backbone"][f"stage0_block{i}"]["fc2"])
        return x.sum()

    def temporary_memory(norm):
        step = jax.jit(
            lambda params, x: norm(jax.grad(loss)(params, x)),
            compiler_options={"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"},
        )
        return step.lower(params, jnp.ones((rows, width))).compile().memory_analysis().temp_size_in_bytes

    first_layer_first = lambda gradients: optax.tree.norm(list(flatten_dict(gradients).values()))
    assert temporary_memory(gradient_norm) < 0.8 * temporary_memory(first_layer_first)
