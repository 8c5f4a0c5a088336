"""PyTorch weights as Flax variables and back: the tables of names applied, and checked in both directions."""

import collections
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from fasseg_jax.models.fasseg import build_model, initial_variables
from fasseg_jax.weights.names.backbones import BACKBONE_RULES, TORCHVISION_RULES
from fasseg_jax.weights.names.hugging_face import HUGGING_FACE_RULES, IGNORED_OF_HUGGING_FACE
from fasseg_jax.weights.names.official import IGNORED, IGNORED_OF_BACKBONES, MODEL_RULES, RENAMED
from fasseg_jax.weights.names.rules import Rule

__all__ = ["Naming", "convert_backbone", "convert_state_dict", "holds_whole_model", "to_state_dict"]

# Whose names a state dict has: those of the official programs, or those of Hugging Face's transformers (Mask2Former).
Naming = Literal["official", "hugging_face"]

WHOLE_MODELS = {"official": (MODEL_RULES, IGNORED), "hugging_face": (HUGGING_FACE_RULES, IGNORED_OF_HUGGING_FACE)}

logger = logging.getLogger(__name__)

# In an error message; of longer lists, names that differ in their numbers alone share a line.
NAMES_LISTED_SINGLY = 40

CLASS_HEAD = "decoder/class_embed/"

PROBLEMS = ("missing", "unexpected", "of another shape", "not floating-point numbers", "not finite (NaN or infinite)")


def holds_whole_model(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of the official FASeg or Mask2Former; if not, `convert_backbone` is to be tried."""
    return any(name.startswith("sem_seg_head.") for name in state_dict)


def convert_state_dict(
    state_dict: Mapping[str, np.ndarray],
    model_config: ConfigDict,
    new_class_head: bool = False,
    naming: Naming = "official",
) -> dict[str, Any]:
    """Convert the weights of a FASeg or Mask2Former model.

    Args:
      state_dict: PyTorch name -> array of floating-point numbers.
      model_config: `config.model` of the same model.
      new_class_head: initialise `class_embed` anew, with a fixed seed, whatever the state dict holds of it.
      naming: whose names those are.

    Returns:
      Flax variables, {"params": ...} and, with batch norm, "batch_stats"; NumPy arrays, float32, which may be
      views of the given ones.

    Raises:
      ValueError: names are missing, unexpected or of another shape than the model's, or values are not finite
        floating-point numbers; one message lists them all.
    """
    rules, ignored = WHOLE_MODELS[naming]
    wanted = _variable_shapes(model_config)
    new = set()
    if new_class_head:
        new = {path for path in wanted if path.startswith(CLASS_HEAD)}
        state_dict = {name: value for name, value in state_dict.items() if not _is_of_class_head(name, rules)}
        logger.warning("The class head is initialised anew, for %d classes.", model_config.num_classes)
    return _convert(rules, state_dict, model_config, wanted, new, ignored)


def to_state_dict(variables: Mapping[str, Any], naming: Naming = "official") -> dict[str, np.ndarray]:
    """The inverse of `convert_state_dict`: the weights of a whole model under their PyTorch names.

    Args:
      variables: Flax variables, NumPy or JAX arrays; those of Mask2Former for the names of transformers.
      naming: whose names to use.

    Returns:
      {PyTorch name: array}, contiguous and of the same dtype, bit for bit the same numbers. What the official programs
      compute anew (relative position indices, the classes' weights of the loss) is not there.

    Raises:
      ValueError: variables that have no such names.
    """
    rules, _ = WHOLE_MODELS[naming]
    state_dict, nameless = {}, []
    for tree in variables.values():
        for path, value in traverse_util.flatten_dict(tree, sep="/").items():
            named = [(name, rule) for rule in rules if (name := rule.name_of(path))]
            state_dict |= {name: np.ascontiguousarray(rule.to_pytorch(np.asarray(value))) for name, rule in named}
            if not named:
                nameless.append(path)
    if nameless:
        raise ValueError(
            f"{len(nameless)} variables have no name in the {naming} table: {', '.join(sorted(nameless)[:5])}, ..."
        )
    return state_dict


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
    parts = collections.defaultdict(dict)  # path -> number of the part -> array
    problems = {kind: {} for kind in PROBLEMS}  # kind -> name -> details
    for name, value in state_dict.items():
        if ignored.search(name):
            continue
        current_name = functools.reduce(lambda text, change: change[0].sub(change[1], text), RENAMED, name)
        rule, path = next(((rule, path) for rule in rules if (path := rule.path_of(current_name))), (None, None))
        if path not in wanted or rule.part[0] in parts[path]:
            problems["unexpected"][name] = "" if path not in wanted else f" (is {current_name}, which is there as well)"
            continue
        value = np.asarray(value)
        kind, details = _problem(value, rule.shape_of(wanted[path][1]))
        if kind:
            problems[kind][name] = details
        parts[path][rule.part[0]] = value if kind else rule.to_flax(value.astype(np.float32, copy=False))
    new = optional - parts.keys()
    for path in wanted.keys() - new:
        for rule in rules:
            if (name := rule.name_of(path)) and rule.part[0] not in parts[path]:
                problems["missing"][name] = ""
    if any(problems.values()):
        raise ValueError(_describe(problems, rules))
    values = _initial_values(model_config, new) if new else {}
    for path in wanted.keys() - new:
        arrays = [parts[path][i] for i in sorted(parts[path])]
        values[path] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    return traverse_util.unflatten_dict({f"{wanted[path][0]}/{path}": value for path, value in values.items()}, sep="/")


def _problem(value: np.ndarray, shape: tuple[int, ...]) -> tuple[str | None, str]:
    """What is wrong with a parameter of the wanted shape, if anything, and details."""
    if value.shape != shape:
        return "of another shape", f" is {value.shape}, the model's is {shape}"
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return "not floating-point numbers", f" is {value.dtype}"
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is reported
        finite = np.isfinite(value.astype(np.float32, copy=False)).all()
    return (None, "") if finite else ("not finite (NaN or infinite)", "")


def _is_of_class_head(name: str, rules: list[Rule]) -> bool:
    return any((rule.path_of(name) or "").startswith(CLASS_HEAD) for rule in rules)


def _describe(problems: dict[str, dict[str, str]], rules: list[Rule]) -> str:
    """One message of all problems."""
    lines = ["the weights do not fit the model of this configuration:"]
    for kind, names in problems.items():
        if names:
            lines.append(f"  {len(names)} {kind}:")
            lines += [f"    {line}" for line in sorted(_list_names(names))]
    if all(_is_of_class_head(name, rules) for names in problems.values() for name in names):
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
