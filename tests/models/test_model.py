"""The whole network: sizes, options, gradients, training behaviour, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fasseg_jax import build_model, load_config
from tests.helpers.tiny import random_variables
from tests.helpers.tiny import tiny_config as make_tiny_config


def images(batch=1, height=64, width=96):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, height, width, 3)), jnp.float32)


def abstract_variables(config):
    model = build_model(config)
    return jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3))), jax.random.key(0))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("configs/ade20k.py:r50", 50_511_639),
        ("configs/ade20k.py:swin_t", 53_922_065),
        pytest.param("configs/ade20k.py:swin_b", 113.4e6, marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:swin_l", 222.0e6, marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:r101", 69.5e6, marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:mask2former_r50", 43_988_247, marks=pytest.mark.slow),
        pytest.param("configs/ade20k.py:mask2former_swin_t", 47.4e6, marks=pytest.mark.slow),
        pytest.param("configs/cityscapes.py:r50", 50_531_092, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(path, parameters):
    """Exact where the official program's count is known, else to the published 0.1 million."""
    ours = count(abstract_variables(load_config(path).model)["params"])
    assert ours == parameters or (isinstance(parameters, float) and round(ours / 1e5) == round(parameters / 1e5))


@pytest.mark.slow
@pytest.mark.parametrize("path", ["configs/ade20k.py:r50", "configs/ade20k.py:swin_s", "configs/cityscapes.py:r101"])
def test_shapes_of_full_models(path):
    config = load_config(path).model
    model = build_model(config)
    variables = abstract_variables(config)
    x = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    last = jax.eval_shape(model.apply, variables, x)
    assert last.class_logits.shape == (2, 100, config.num_classes + 1)
    assert last.mask_logits.shape == (2, 100, 16, 24)
    every = jax.eval_shape(lambda v, x: model.apply(v, x, all_predictions=True), variables, x)
    assert every.class_logits.shape == (14, 2, 100, config.num_classes + 1)
    assert every.mask_logits.shape == (14, 2, 100, 16, 24)


def test_images_of_a_batch_do_not_mix(tiny_config):
    model = build_model(tiny_config.model)
    x = images(3)
    variables = random_variables(model)
    apply = jax.jit(model.apply)
    together = apply(variables, x)
    for i in range(3):
        alone = apply(variables, x[i : i + 1])
        np.testing.assert_allclose(alone.class_logits[0], together.class_logits[i], atol=1e-4)
        np.testing.assert_allclose(alone.mask_logits[0], together.mask_logits[i], atol=1e-4)


def initial_variables(model, x):
    """Initial parameters with noise: where an offset kernel is still zero, no gradient passes it."""
    variables = jax.jit(model.init)(jax.random.key(0), x)
    rng = np.random.default_rng(1)

    def noisy(leaf):
        return np.asarray(leaf + 0.02 * rng.standard_normal(leaf.shape), np.float32)

    return {**variables, "params": jax.tree.map(noisy, variables["params"])}


OPTIONS = {
    "positional_queries": ("decoder.positional_queries", "learned"),
    "key_positions": ("key_positions", "sine"),
    "hrca": ("decoder.hrca", False),
    "omega": ("decoder.hrca_omega", 2),
    "hrca_selection": ("decoder.hrca_selection", "pixel"),
    "first_focus": ("decoder.first_focus", "foreground"),
    "mask_threshold": ("decoder.mask_threshold", 0.5),
}


@functools.cache
def plain_network():
    """Variables and predictions of the network without any option; not to be changed."""
    model = build_model(make_tiny_config(num_classes=5).model)
    variables = jax.jit(model.init)(jax.random.key(0), images())
    return variables, jax.jit(model.apply)(variables, images())


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_the_predictions(tiny_config, option):
    """With the same values in all parameters that both networks have."""
    variables, before = plain_network()
    field, value = OPTIONS[option]
    tiny_config.model.update_from_flattened_dict({field: value})
    changed = build_model(tiny_config.model)
    expected = jax.eval_shape(changed.init, jax.random.key(0), images())
    after = jax.jit(changed.apply)(cut_to(expected, variables), images())
    assert np.isfinite(after.class_logits).all() and np.isfinite(after.mask_logits).all()
    assert np.abs(before.class_logits - after.class_logits).max() > 1e-4


def cut_to(expected, variables):
    """The values of `variables` at the paths and sizes of `expected`."""
    if isinstance(expected, jax.ShapeDtypeStruct):
        return variables[tuple(slice(n) for n in expected.shape)]
    return {name: cut_to(part, variables[name]) for name, part in expected.items()}


@pytest.mark.slow
def test_gradients_reach_every_parameter_and_are_finite(tiny_config):
    model = build_model(tiny_config.model)
    x = images(2)
    variables = initial_variables(model, x)

    @jax.jit
    @jax.grad
    def gradient(params):
        predictions = model.apply({**variables, "params": params}, x, train=True, all_predictions=True)
        return jnp.square(predictions.class_logits).mean() + jnp.square(predictions.mask_logits).mean()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.slow
def test_gradients_equal_finite_differences(tiny_config):
    """Along the gradient of each part, where the slope is the gradient's norm.

    Attention everywhere and HRCA over all windows: the discrete choices, which carry no gradient, are then constant.
    """
    tiny_config.model.decoder.mask_threshold = 0.0
    tiny_config.model.decoder.hrca_omega = 1
    model = build_model(tiny_config.model)
    x = images()
    variables = initial_variables(model, x)

    @jax.jit
    def loss(params):
        predictions = model.apply({**variables, "params": params}, x, all_predictions=True)
        return jnp.tanh(predictions.class_logits).mean() + jnp.tanh(predictions.mask_logits / 10).mean()

    params = variables["params"]
    gradient = jax.jit(jax.grad(loss))(params)
    for part in ("backbone", "pixel_decoder", "decoder"):
        norm = optax.tree.norm(gradient[part])
        step = 1e-3 / norm

        def moved(sign, part=part, step=step):
            return {**params, part: jax.tree.map(lambda p, g: p + sign * step * g, params[part], gradient[part])}

        slope = (loss(moved(1)) - loss(moved(-1))) / (2 * step)
        np.testing.assert_allclose(slope, norm**2, rtol=0.02, err_msg=part)


def test_refuses_what_it_cannot_run(tiny_config):
    model = build_model(tiny_config.model)
    for shape in ((1, 60, 64, 3), (1, 64, 64, 4), (64, 64, 3)):
        with pytest.raises(ValueError, match="multiples of 32"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    tiny_config.model.decoder.first_focus = "forground"
    with pytest.raises(ValueError, match="first_focus is 'forground'; choose one of background, foreground"):
        build_model(tiny_config.model)
