"""State dicts for the tests: the official names and shapes, and models small enough to convert in no time."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fasseg_jax.models.fasseg import build_model
from fasseg_jax.weights.names.official import official_rules
from tests.helpers import GOLDEN

# model -> {"config", "parameters" (their number), "state_dict": {PyTorch name: shape}} of the official programs
OFFICIAL = json.loads((GOLDEN / "state_dict_names.json").read_text())


def official_state_dict(model):
    """Random values under the official names."""
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in OFFICIAL[model]["state_dict"].items()}


def model_shapes(config):
    """Path -> shape of each variable, the collection first."""
    model = build_model(config.model)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(variables, sep="/").items()}


def tiny_state_dict(config):
    """Random values under the PyTorch names of the model's variables."""
    rng = np.random.default_rng(0)
    rules = official_rules(config.model.backbone.kind)
    state_dict = {}
    for path, shape in model_shapes(config).items():
        path = path.partition("/")[2]
        rule, name = next((rule, name) for rule in rules if (name := rule.name_of(path)))
        value = rng.random(shape, np.float32)
        value = value if rule.axes is None else value.transpose(np.argsort(rule.axes))
        state_dict[name] = value.reshape((1,) * rule.leading + value.shape)
    return state_dict
