"""What a training starts from: random weights, an ImageNet backbone, or a whole model, perhaps of other classes."""

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.weights.checkpoint import load_checkpoint

__all__ = ["start_variables"]


def start_variables(random: dict[str, Any], config: ConfigDict, classes: ClassTable) -> tuple[dict[str, Any], str]:
    """Random variables with those of the checkpoint `config.train.init` in place of theirs.

    Args:
      random: of `initial_variables`, as numpy arrays.
      config: the whole configuration.
      classes: of the data; a class head of the same classes is taken over, another starts anew.

    Returns:
      The variables, and a sentence on where they come from.

    Raises:
      FileNotFoundError, ValueError: of `load_checkpoint`; or the checkpoint is of another model: every name and shape
        that differs is listed.
    """
    path = config.train.init
    if not path:
        return random, "random weights"
    checkpoint = load_checkpoint(path)
    ours, theirs = flatten_dict(random, sep="/"), flatten_dict(checkpoint.variables, sep="/")
    anew = []
    if checkpoint.contents == "backbone":
        wanted = {name for name in ours if name.split("/")[1] == "backbone"}
        sentence = f"the backbone of {path}; pixel decoder and decoder random"
    else:
        wanted = set(ours)
        sentence = f"the model of {path}"
        if checkpoint.classes.names != classes.names:
            anew = [name for name in ours if name.startswith("params/decoder/class_embed/")]
            sentence += (
                f"; a new class head, as its {len(checkpoint.classes)} classes are not the data's {len(classes)}"
            )
    wanted -= set(anew)
    theirs = {name: value for name, value in theirs.items() if name not in anew}
    theirs = _trained_batch_norm(theirs, wanted)
    problems = [f"{name} is missing" for name in sorted(wanted - set(theirs))]
    problems += [f"{name} is unexpected" for name in sorted(set(theirs) - wanted)]
    for name in sorted(wanted & set(theirs)):
        if theirs[name].shape != ours[name].shape:
            problems.append(f"{name} is {theirs[name].shape}, the model's is {ours[name].shape}")
    if problems:
        raise ValueError(
            f"config.train.init = {path}: does not fit config.model; is it of the same configuration? "
            f"{len(problems)} differences: " + "; ".join(problems)
        )
    return unflatten_dict({**ours, **theirs}, sep="/"), sentence


def _trained_batch_norm(theirs: dict[str, np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
    """Scale and bias of batch norm where the model has them: statistics if frozen, parameters if trained."""
    moved = {}
    for name, value in theirs.items():
        collection, path = name.split("/", 1)
        other = f"{'batch_stats' if collection == 'params' else 'params'}/{path}"
        moved[other if name not in wanted and other in wanted else name] = value
    return moved
