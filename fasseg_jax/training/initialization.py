"""What a training starts from: random weights, an ImageNet backbone, or a whole model, perhaps of other classes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.models.fasseg import FASeg, initial_values
from fasseg_jax.weights.checkpoint import load_checkpoint

__all__ = ["start_variables"]

CLASS_HEAD = "params/decoder/class_embed/"


def start_variables(
    model: FASeg, shapes: Mapping[str, Any], config: ConfigDict, classes: ClassTable
) -> tuple[Callable[[], dict[str, Any]], str]:
    """The variables of the checkpoint `config.train.init`, and random ones where it has none.

    The checkpoint is read at once. Random variables are compiled and drawn when the caller likes.

    Args:
      model: of `build_model(config.model)`.
      shapes: of the model's variables.
      config: the whole configuration.
      classes: of the data. The checkpoint's class head is used only if its classes are the same.

    Returns:
      A function that gives the variables, numpy arrays, and where they come from, in words.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it is damaged, or of another model; the message lists every name and shape that differs.
    """
    ours = flatten_dict(shapes, sep="/")
    path = config.train.init
    if not path:
        return lambda: unflatten_dict(initial_values(model, config.train.seed, ours), sep="/"), "random weights"
    checkpoint = load_checkpoint(path)
    theirs = flatten_dict(checkpoint.variables, sep="/")
    if checkpoint.contents == "backbone":
        wanted = {name for name in ours if name.split("/")[1] == "backbone"}
        origin = f"the backbone of {path}; pixel decoder and decoder random"
    elif checkpoint.classes.names == classes.names:
        wanted = set(ours)
        origin = f"the model of {path}"
    else:
        wanted = {name for name in ours if not name.startswith(CLASS_HEAD)}
        theirs = {name: value for name, value in theirs.items() if not name.startswith(CLASS_HEAD)}
        origin = (
            f"the model of {path}; a new class head, because its {len(checkpoint.classes)} classes are not the "
            f"data's {len(classes)}"
        )
    used = _move_batch_norm(theirs, wanted)
    if problems := _differences(used, {name: ours[name] for name in wanted}):
        raise ValueError(
            f"config.train.init = {path}: does not fit config.model; is it of the same configuration? "
            f"{len(problems)} differences: " + "; ".join(problems)
        )

    def variables() -> dict[str, Any]:
        random = initial_values(model, config.train.seed, ours.keys() - used.keys())
        return unflatten_dict({**random, **used}, sep="/")

    return variables, origin


def _differences(found: Mapping[str, np.ndarray], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """Names and shapes of `found` that are not those of `wanted`, a line each."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} is unexpected" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if found[name].shape != wanted[name].shape:
            problems.append(f"{name} is {found[name].shape}, the model's is {wanted[name].shape}")
    return problems


def _move_batch_norm(theirs: Mapping[str, np.ndarray], wanted: set[str]) -> dict[str, np.ndarray]:
    """Move scale and bias of batch norm to where the model has them: statistics if frozen, parameters if trained."""
    moved = {}
    for name, value in theirs.items():
        collection, path = name.split("/", 1)
        other = f"{'batch_stats' if collection == 'params' else 'params'}/{path}"
        moved[other if name not in wanted and other in wanted else name] = value
    return moved
