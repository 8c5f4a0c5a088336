"""Where a training starts from."""

import jax
import numpy as np
import pytest

from fasseg_jax.data.classes import ClassTable, load_classes
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.training.initialization import start_variables
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.helpers.tiny import random_variables, tiny_config

CLASSES = load_classes("cityscapes")


@pytest.fixture(scope="module")
def trained():
    """A model of the 19 Cityscapes classes: configuration and variables."""
    config = tiny_config()
    return config, random_variables(build_model(config.model), seed=1)


@pytest.fixture(scope="module")
def random(trained):
    """What the whole initialization gives."""
    config, _ = trained
    model = build_model(config.model)
    return jax.device_get(jax.jit(lambda: initial_variables(model, config.train.seed))())


def start(config, classes=CLASSES):
    """`start_variables` of the model of a configuration."""
    model = build_model(config.model)
    variables, origin = start_variables(model, jax.eval_shape(lambda: initial_variables(model, 0)), config, classes)
    return variables(), origin


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_random(trained, random):
    config = tiny_config()
    variables, sentence = start(config)
    assert same(variables, random) and sentence == "random weights"
    assert not same(random, trained[1])


def test_without_the_host_as_a_device(random, monkeypatch):
    """JAX_PLATFORMS=cuda leaves it out; the values are the same then."""

    def only_cuda(backend):
        raise RuntimeError(f"Unknown backend: '{backend}' requested")

    monkeypatch.setattr(jax, "local_devices", only_cuda)
    variables, _ = start(tiny_config())
    assert same(variables, random)


def test_as_by_jax(random):
    """A seed gives what JAX's own random numbers give."""
    config = tiny_config()
    model = build_model(config.model)
    size = model.size_divisor * 2
    init = jax.jit(lambda: model.init(jax.random.key(config.train.seed), np.zeros((1, size, size, 3), np.float32)))
    assert same(dict(jax.device_get(init())), random)


def test_whole_model(trained, random, tmp_path):
    config, weights = trained
    save_checkpoint(tmp_path / "c", config, weights, CLASSES)
    config = tiny_config()
    config.train.init = str(tmp_path / "c")
    variables, _ = start(config)
    assert same(variables, weights)


def test_other_classes_get_a_new_head(trained, random, tmp_path):
    """Also if their number is the same."""
    config, weights = trained
    save_checkpoint(tmp_path / "c", config, weights, CLASSES)
    config = tiny_config()
    config.train.init = str(tmp_path / "c")
    others = ClassTable(tuple(f"class {i}" for i in range(19)), np.zeros((19, 3), np.uint8))
    variables, sentence = start(config, others)
    assert "a new class head" in sentence
    ours, theirs = variables["params"]["decoder"], weights["params"]["decoder"]
    assert same(ours.pop("class_embed"), random["params"]["decoder"]["class_embed"])
    assert same(ours, {name: value for name, value in theirs.items() if name != "class_embed"})
    assert same(variables["params"]["backbone"], weights["params"]["backbone"])


def test_backbone_alone(trained, random, tmp_path):
    config, weights = trained
    backbone = {collection: {"backbone": tree["backbone"]} for collection, tree in weights.items()}
    save_checkpoint(tmp_path / "c", config, backbone, CLASSES, contents="backbone")
    config = tiny_config()
    config.train.init = str(tmp_path / "c")
    variables, _ = start(config)
    assert same(variables["params"]["backbone"], weights["params"]["backbone"])
    assert same(variables["params"]["decoder"], random["params"]["decoder"])

    # Converted for frozen batch norm, trained with batch norm: scale and bias become parameters.
    config.model.backbone.norm = "batch_norm"
    variables, _ = start(config)
    ours = variables["params"]["backbone"]["stem_norm"] | variables["batch_stats"]["backbone"]["stem_norm"]
    assert same(ours, weights["batch_stats"]["backbone"]["stem_norm"])


def test_another_model_is_refused(trained, random, tmp_path):
    config, weights = trained
    save_checkpoint(tmp_path / "c", config, weights, CLASSES)
    config = tiny_config()
    config.train.init = str(tmp_path / "c")
    config.model.decoder.num_queries = 7
    config.model.pixel_decoder.num_layers = 2
    with pytest.raises(ValueError, match="does not fit") as error:
        start(config)
    assert "params/pixel_decoder/encoder_1/norm1/scale is missing" in str(error.value)
    assert "params/decoder/query_feat is (9, 32), the model's is (7, 32)" in str(error.value)
