"""What a run compares with the checkpoint from which it resumes."""

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.training.resume import check_resumed
from fasseg_jax.weights.checkpoint_metadata import CheckpointMetadata

NAMES = ("background", "circle", "square", "triangle", "cross", "ring")
SAMPLES = {"training": 40, "validation": 4}
FINGERPRINTS = {"training": "5af3", "validation": "09c1"}


def table(names=NAMES, shade=0):
    return ClassTable(tuple(names), np.full((len(names), 3), shade, np.uint8))


def resumed(
    classes=None,
    samples=SAMPLES,
    saved_samples=SAMPLES,
    changed_data=False,
    step=5,
    fingerprints=FINGERPRINTS,
    **fields,
):
    saved = CheckpointMetadata(
        load_config("configs/shapes.py"), table(), samples=saved_samples, fingerprints=FINGERPRINTS
    )
    config = load_config("configs/shapes.py")
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return check_resumed(step, saved, config, classes or table(), samples, changed_data, fingerprints)


def test_nothing_changed():
    assert resumed() == []
    assert resumed(saved_samples={}) == []  # of a run that did not write them yet
    assert resumed(fingerprints={}) == []
    assert resumed(step=5, train__steps=5) == ["config.train.steps was 1000, is 5"]


def test_settings_are_named_and_go_on():
    assert resumed(optimizer__weight_decay=0.5) == ["config.optimizer.weight_decay was 0.05, is 0.5"]
    assert resumed(data__root="/elsewhere", data__num_threads=1) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"classes": table((NAMES[1], NAMES[0], *NAMES[2:]))}, "class 0 was 'background', is 'circle', class 1 was"),
        ({"classes": table([name.upper() for name in NAMES])}, r"is 'CIRCLE' \(and 4 others\)"),
        ({"classes": table(shade=1)}, "the colors of classes are others"),
        ({"samples": {"training": 41, "validation": 4}}, "the training split had 40 samples, has 41"),
        ({"samples": {"training": 40, "validation": 3}}, "the validation split had 4 samples, has 3"),
        ({"fingerprints": {**FINGERPRINTS, "validation": "77"}}, "the validation split has other photos"),
        ({"data__ignore_label": 0}, "config.data.ignore_label was 255, is 0"),
        ({"data__reduce_zero_label": True}, "config.data.reduce_zero_label was False, is True"),
        ({"data__label_orientation": "stored"}, "config.data.label_orientation was 'auto', is 'stored'"),
    ],
)
def test_other_data_need_the_flag(changes, line):
    with pytest.raises(ValueError, match=f"the data changed since step 5 of this run: .*{line}.*--changed_data"):
        resumed(**changes)
    (said,) = resumed(**changes, changed_data=True)
    with pytest.raises(ValueError, match=line):
        raise ValueError(said)


def test_a_run_cannot_freeze_its_backbone_midway():
    with pytest.raises(ValueError, match=r"backbone_multiplier was 1.0, is 0.0: .*--config.train.init=CHECKPOINT"):
        resumed(optimizer__backbone_multiplier=0.0)
    assert resumed(optimizer__backbone_multiplier=0.5) == ["config.optimizer.backbone_multiplier was 1.0, is 0.5"]


def test_fewer_steps_than_done_are_refused():
    with pytest.raises(ValueError, match="config.train.steps = 4, but this run has done 5"):
        resumed(train__steps=4)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="of another network"):
        resumed(model__hidden_dim=128, changed_data=True)
