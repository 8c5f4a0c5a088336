"""PyTorch weights as Flax variables: the table of names applied, and checked in both directions."""

import collections
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from fasseg_jax.model import build_model, initial_variables
from fasseg_jax.weight_rules import (
    BACKBONE_RULES,
    IGNORED,
    IGNORED_OF_BACKBONES,
    MODEL_RULES,
    RENAMED,
    TORCHVISION_RULES,
    Rule,
)

__all__ = ["convert_backbone", "convert_state_dict", "holds_whole_model"]

logger = logging.getLogger(__name__)

# In an error message; of longer lists, names that differ in their numbers alone share a line.
NAMES_LISTED_SINGLY = 40

PROBLEMS = ("missing", "unexpected", "of another shape", "not floating-point numbers", "not finite (NaN or infinite)")


def holds_whole_model(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of a FASeg or Mask2Former model; if not, `convert_backbone` is to be tried."""
    return any(name.startswith("sem_seg_head.") for name in state_dict)


def convert_state_dict(
    state_dict: Mapping[str, np.ndarray], model_config: ConfigDict, new_class_head: bool = False
) -> dict[str, Any]:
    """Convert the weights of a FASeg or Mask2Former model.

    Args:
      state_dict: PyTorch name -> array of floating-point numbers, as the official programs name them.
      model_config: `config.model` of the same model.
      new_class_head: initialise `class_embed` anew, with a fixed seed, whatever the state dict holds of it.

    Returns:
      Flax variables, {"params": ...} and, with batch norm, "batch_stats"; NumPy arrays, float32, which may be
      views of the given ones.

    Raises:
      ValueError: names are missing, unexpected or of another shape than the model's, or values are not finite
        floating-point numbers; one message lists them all.
    """
    wanted = _variable_shapes(model_config)
    new = set()
    if new_class_head:
        new = {path for path in wanted if path.startswith("decoder/class_embed/")}
        state_dict = {name: value for name, value in state_dict.items() if ".class_embed." not in name}
        logger.warning("The class head is initialised anew, for %d classes.", model_config.num_classes)
    return _convert(MODEL_RULES, state_dict, model_config, wanted, new, IGNORED)


def convert_backbone(state_dict: Mapping[str, np.ndarray], model_config: ConfigDict) -> dict[str, Any]:
    """Convert the weights of a backbone alone, as trained on ImageNet.

    Args:
      state_dict: PyTorch name -> array of floating-point numbers; a ResNet with the names of torchvision or Detectron2,
        or a Swin transformer with those of its authors. The classifier is left out.
      model_config: `config.model` with the same backbone.

    Returns:
      Flax variables as `convert_state_dict` has them, of the backbone alone: {"params": {"backbone": ...}, ...}. The
      norms of a Swin transformer's outputs, which ImageNet models lack, keep their initial values.

    Raises:
      ValueError: as `convert_state_dict`.
    """
    wanted = {path: shape for path, shape in _variable_shapes(model_config).items() if path.startswith("backbone/")}
    rules = TORCHVISION_RULES if "layer1.0.conv1.weight" in state_dict else BACKBONE_RULES
    output_norms = {path for path in wanted if re.match(r"backbone/norm\d/", path)}
    return _convert(rules, state_dict, model_config, wanted, output_norms, IGNORED_OF_BACKBONES)


def _variable_shapes(model_config: ConfigDict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Path without collection -> (collection, shape) of all the model's variables."""
    variables = jax.eval_shape(lambda: initial_variables(build_model(model_config), 0))
    return {
        path: (collection, leaf.shape)
        for collection, tree in variables.items()
        for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }


def _initial_values(model_config: ConfigDict, paths: set[str]) -> dict[str, np.ndarray]:
    """The parameters at these paths as the model initialises them, with a fixed seed."""

    @jax.jit  # leaves the rest of the initialisation out
    def initialise() -> dict[str, jax.Array]:
        parameters = traverse_util.flatten_dict(initial_variables(build_model(model_config), 0)["params"], sep="/")
        return {path: parameters[path] for path in paths}

    return jax.device_get(initialise())


def _convert(
    rules: list[Rule],
    state_dict: Mapping[str, np.ndarray],
    model_config: ConfigDict,
    wanted: dict[str, tuple[str, tuple[int, ...]]],
    optional: set[str],
    ignored: re.Pattern,
) -> dict[str, Any]:
    """Flax variables by the rules; of the wanted paths only the optional may be missing, and are then initialised."""
    values = {}
    problems = {kind: {} for kind in PROBLEMS}  # kind -> name -> details
    for name, value in state_dict.items():
        if ignored.search(name):
            continue
        current_name = functools.reduce(lambda text, change: change[0].sub(change[1], text), RENAMED, name)
        rule, path = next(((rule, path) for rule in rules if (path := rule.path_of(current_name))), (None, None))
        if path not in wanted or path in values:
            problems["unexpected"][name] = "" if path not in values else f" (is {current_name}, which is there as well)"
            continue
        values[path] = value = np.asarray(value)
        shape = _pytorch_shape(wanted[path][1], rule.axes)
        if value.shape != shape:
            problems["of another shape"][name] = f" is {value.shape}, the model's is {shape}"
        elif not jnp.issubdtype(value.dtype, jnp.floating):
            problems["not floating-point numbers"][name] = f" is {value.dtype}"
        else:
            with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is reported
                value = value.astype(np.float32, copy=False)
            if not np.isfinite(value).all():
                problems["not finite (NaN or infinite)"][name] = ""
            values[path] = value if rule.axes is None else value.transpose(rule.axes)
    for path in wanted.keys() - values.keys() - optional:
        problems["missing"][_pytorch_name(path, rules)] = ""
    if any(problems.values()):
        raise ValueError(_describe(problems))
    absent = optional - values.keys()
    if absent:
        values |= _initial_values(model_config, absent)
    return traverse_util.unflatten_dict({f"{wanted[path][0]}/{path}": value for path, value in values.items()}, sep="/")


def _pytorch_shape(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    return shape if axes is None else tuple(shape[i] for i in np.argsort(axes))


def _pytorch_name(path: str, rules: list[Rule]) -> str:
    return next(name for rule in rules if (name := rule.name_of(path)))


def _describe(problems: dict[str, dict[str, str]]) -> str:
    """One message of all problems."""
    lines = ["the weights do not fit the model of this configuration:"]
    for kind, names in problems.items():
        if names:
            lines.append(f"  {len(names)} {kind}:")
            lines += [f"    {line}" for line in sorted(_list_names(names))]
    if all(".class_embed." in name for names in problems.values() for name in names):
        lines.append(
            "Only the class head differs: ask for a new one (new_class_head), or set model.num_classes to theirs."
        )
    else:
        lines.append("Is this the configuration that the weights belong to?")
    return "\n".join(lines)


def _list_names(names: dict[str, str]) -> list[str]:
    if len(names) <= NAMES_LISTED_SINGLY:
        return [name + details for name, details in names.items()]
    groups = collections.defaultdict(list)
    for name, details in names.items():
        groups[re.sub(r"\d+", "#", name) + details].append(name)
    lines = []
    for group, members in groups.items():
        numbers = sorted(tuple(map(int, re.findall(r"\d+", name))) for name in members)
        listed = " ".join(".".join(map(str, number)) for number in numbers)
        lines.append(f"{group}, # = {listed}" if len(members) > 1 else members[0] + names[members[0]])
    return lines
