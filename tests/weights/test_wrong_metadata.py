"""Metadata of checkpoints and of transformers' folders that somebody edited, or that are another program's."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from fasseg_jax.config import base_config, use_mask2former
from fasseg_jax.data.classes import load_classes
from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.weights.checkpoint import Checkpoint, find_checkpoint
from fasseg_jax.weights.checkpoint_metadata import checkpoint_metadata, load_metadata
from fasseg_jax.weights.hugging_face import read_hugging_face
from fasseg_jax.weights.hugging_face_config import describe_model, read_configuration
from tests.helpers.mutation import mutations
from tests.helpers.tiny import tiny_config

WRONG = ["100", -1, 0, 1.5, True, None, [], {}, 10**12, float("nan"), [1, 2, 3, "4"], "x" * 10_000]


def description():
    config = base_config()
    use_mask2former(config)
    return describe_model(config, load_classes("ade20k"))


def test_what_is_written_is_read():
    config, names = read_configuration(description(), {})
    assert config.model.num_classes == len(names) == 150


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_configurations_of_transformers_with_wrong_kinds(tmp_path, value):
    """Every field with every wrong value: accepted only if the field is not read; otherwise the message is short."""
    original = description()
    backbone = original["backbone_config"]
    places = [(original, name) for name in original] + [(backbone, name) for name in backbone]
    for fields, name in places:
        content = json.loads(json.dumps(original))
        (content if fields is original else content["backbone_config"])[name] = value
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises((ValueError, FileNotFoundError)) as error:  # FileNotFoundError: it asks for the weights
            read_hugging_face(tmp_path)
        assert str(tmp_path) in str(error.value) and len(str(error.value)) < 12_000
        if name in ("num_queries", "depths", "hidden_dim", "decoder_layers"):
            assert isinstance(error.value, ValueError) and f"{name} is" in str(error.value)


def checkpoint_folder(folder, metadata):
    (folder / "metadata").mkdir(parents=True)
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    (folder / "metadata" / "metadata").write_text(text)
    return folder


def test_checkpoints_with_wrong_metadata(tmp_path):
    right = checkpoint_metadata(base_config(), load_classes("ade20k"))
    assert load_metadata(checkpoint_folder(tmp_path / "right", right)).contents == "model"
    wrong = ["", "[]", "3", "null", "{}", "{", "[" * 100_000, '{"format": "' + "x" * 10_000 + '"}']
    wrong += [
        json.dumps({**right, name: value})
        for name in right
        for value in WRONG
        if value is not True and (name, value) not in (("samples", {}), ("fingerprints", {}))
    ]
    wrong += [json.dumps({**right, "samples": {"training": value}}) for value in WRONG if value not in (0, 10**12)]
    wrong += [json.dumps({**right, "fingerprints": {"training": value}}) for value in WRONG if type(value) is not str]
    tables = [
        ("names", [1] * 150),
        ("names", ["\x1b[2J"] * 150),
        ("names", "x" * 150),
        ("palette", [[0, 0, 256]] * 150),
    ]
    tables += [("palette", [[0, 0, 0.5]] * 150), ("palette", [[0, 0, -1]] * 150), ("palette", [["0", "0", "0"]] * 150)]
    wrong += [json.dumps({**right, "classes": {**right["classes"], name: value}}) for name, value in tables]
    for i, text in enumerate(wrong):
        folder = checkpoint_folder(tmp_path / str(i), text)
        with pytest.raises(ValueError) as error:
            load_metadata(folder)
        assert str(folder) in str(error.value) and len(str(error.value)) < 600 and "\n" not in str(error.value)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_metadata(tmp_path, count):
    right = json.dumps(checkpoint_metadata(base_config(), load_classes("cityscapes")))
    folder = checkpoint_folder(tmp_path / "checkpoint", right)
    file = folder / "metadata" / "metadata"
    refused = 0
    for content in mutations(right.encode(), count):
        file.write_bytes(content)
        try:
            load_metadata(folder)
        except ValueError as error:
            assert str(folder) in str(error) and len(str(error)) < 600 + len(str(folder)) and "\n" not in str(error)
            refused += 1
    assert refused > count / 2


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_configurations_of_transformers(tmp_path, count):
    for content in mutations(json.dumps(description()).encode(), count):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises((ValueError, FileNotFoundError)) as error:  # FileNotFoundError: it asks for the weights
            read_hugging_face(tmp_path)
        assert str(tmp_path) in str(error.value) and len(str(error.value)) < 12_000


def test_a_folder_of_transformers_is_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="convert it: fasseg convert --weights"):
        load_metadata(tmp_path)


def test_a_run_with_damaged_metrics(tmp_path):
    metrics = tmp_path / "checkpoints" / "5" / "metrics"
    metrics.mkdir(parents=True)
    (tmp_path / "checkpoints" / "²").mkdir()
    (metrics / "metrics").write_text('{"mean_iou": 0.5}')
    assert find_checkpoint(tmp_path)[0].name == "5"
    for content in ("", "[]", '{"mean_iou": "x"}', "{}"):
        (metrics / "metrics").write_text(content)
        with pytest.raises(ValueError, match="metrics: .*damaged"):
            find_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convnext", "resnet", "swin", "vit"])
def test_weights_that_are_not_of_the_configuration(kind):
    config = tiny_config(kind)
    shapes = jax.eval_shape(lambda: initial_variables(build_model(config.model), 0))
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    checkpoint = Checkpoint(config, variables, load_classes("cityscapes"))
    checkpoint.require_whole_model("mine")
    fields = ("num_classes", "hidden_dim", "decoder.num_queries", "decoder.num_layers", "pixel_decoder.num_layers")
    for field in fields:
        edited = tiny_config(kind)
        edited.model.update_from_flattened_dict({field: 17})
        with pytest.raises(ValueError, match=f"mine: .*was its metadata edited.*{field} does not fit"):
            dataclasses.replace(checkpoint, config=edited).require_whole_model("mine")
