"""PyTorch weights as Flax variables and back: applies the tables of names, and checks the result in both directions."""

import collections
import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from fasseg_jax.models.fasseg import build_model, initial_values, initial_variables
from fasseg_jax.weights.backbones import FOREIGN_BACKBONES
from fasseg_jax.weights.fitting import best_fit
from fasseg_jax.weights.names.hugging_face import IGNORED_OF_HUGGING_FACE, hugging_face_rules
from fasseg_jax.weights.names.official import IGNORED, RENAMED, official_rules
from fasseg_jax.weights.names.rules import Rule, find_rule
from fasseg_jax.weights.safe_pickle import shorten

__all__ = ["Naming", "convert_backbone", "convert_state_dict", "holds_whole_model", "to_state_dict"]

# The program whose names a state dict has: the official one, or Hugging Face's transformers (Mask2Former).
Naming = Literal["official", "hugging_face"]

# Naming -> the table of names for a kind of backbone, and the names that are not read.
TABLES: dict[Naming, tuple[Callable[[str], list[Rule]], re.Pattern[str]]] = {
    "official": (official_rules, IGNORED),
    "hugging_face": (hugging_face_rules, IGNORED_OF_HUGGING_FACE),
}

# In longer lists of an error message, names that differ only in their numbers share a line.
NAMES_LISTED_SINGLY = 40

# An error message has at most that many lines for each kind of problem.
LINES_LISTED = 12

CLASS_HEAD = "decoder/class_embed/"

PROBLEMS = ("missing", "unexpected", "of another shape", "not floating-point numbers", "not finite (NaN or infinite)")

logger = logging.getLogger(__name__)


def holds_whole_model(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are those of the official FASeg or Mask2Former; otherwise try `convert_backbone`."""
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
      new_class_head: ignore the `class_embed` of the state dict and initialize a new one, with a fixed seed.
      naming: the program whose names the state dict has.

    Returns:
      Flax variables, {"params": ...} and, with batch norm, "batch_stats": NumPy arrays, float32, possibly views of the
      given ones.

    Raises:
      ValueError: names are missing or unexpected, shapes differ from the model's, or values are not finite
        floating-point numbers. One message counts them all and lists the first of each kind.
    """
    rules_for, ignored = TABLES[naming]
    rules = rules_for(model_config.backbone.kind)
    wanted = _variables_of(model_config)
    new: set[str] = set()
    if new_class_head:
        new = {path for path in wanted if path.startswith(CLASS_HEAD)}
        state_dict = {name: value for name, value in state_dict.items() if not _is_of_class_head(name, rules)}
        logger.warning("The class head gets new random weights, for %d classes.", model_config.num_classes)
    return _convert(rules, state_dict, model_config, wanted, new, [ignored])


def convert_backbone(state_dict: Mapping[str, np.ndarray], model_config: ConfigDict) -> dict[str, Any]:
    """Convert the weights of a backbone that was trained on ImageNet.

    Args:
      state_dict: PyTorch name -> array of floating-point numbers, with the names of a program that has the backbone (a
        table `imagenet` in `weights/backbones`). The classifier is ignored.
      model_config: `config.model` with the same backbone.

    Returns:
      Flax variables as of `convert_state_dict`, but only the backbone's: {"params": {"backbone": ...}, ...}. What
      ImageNet models lack has its initial values: the norms of the outputs of Swin and ConvNeXt, the pyramid of a ViT.

    Raises:
      ValueError: as `convert_state_dict`.
    """
    backbone = FOREIGN_BACKBONES[model_config.backbone.kind]
    state_dict = backbone.prepare(state_dict)
    rules = max(backbone.imagenet, key=lambda rules: sum(find_rule(name, rules) is not None for name in state_dict))
    wanted = {path: variable for path, variable in _variables_of(model_config).items() if path.startswith("backbone/")}
    absent = {path for path in wanted if backbone.not_in_imagenet and backbone.not_in_imagenet.search(path)}
    return _convert(rules, state_dict, model_config, wanted, absent, [IGNORED, backbone.classifier])


def to_state_dict(
    variables: Mapping[str, Any], model_config: ConfigDict, naming: Naming = "official"
) -> dict[str, np.ndarray]:
    """Rename the weights of a model or a backbone to PyTorch's names: the inverse of `convert_state_dict`.

    Args:
      variables: Flax variables, NumPy or JAX arrays; for the names of transformers, a Mask2Former's.
      model_config: `config.model` of the same model.
      naming: the program whose names the result has.

    Returns:
      {PyTorch name: array}, contiguous, bit for bit the same numbers in the same dtype. It lacks what the official
      programs compute themselves: relative position indices, the loss's class weights.

    Raises:
      ValueError: the table has no name for some of the variables.
    """
    rules = TABLES[naming][0](model_config.backbone.kind)
    state_dict: dict[str, np.ndarray] = {}
    nameless = []
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


@dataclasses.dataclass(frozen=True)
class _Variable:
    """A variable of the model."""

    collection: str
    shape: tuple[int, ...]


def _variables_of(model_config: ConfigDict) -> dict[str, _Variable]:
    """All variables of the model, by their paths without the collection."""
    variables = jax.eval_shape(lambda: initial_variables(build_model(model_config), 0))
    return {
        path: _Variable(collection, leaf.shape)
        for collection, tree in variables.items()
        for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()
    }


def _convert(
    rules: Sequence[Rule],
    state_dict: Mapping[str, np.ndarray],
    model_config: ConfigDict,
    wanted: dict[str, _Variable],
    optional: set[str],
    ignored: list[re.Pattern[str]],
) -> dict[str, Any]:
    """Flax variables at all wanted paths. Only the optional ones may be missing; they get initial values."""
    read = {name: value for name, value in state_dict.items() if not any(names.search(name) for names in ignored)}
    parts, problems = _sort_into_variables(rules, read, wanted)
    new = optional - parts.keys()
    problems["missing"] = dict.fromkeys(_missing_names(rules, parts, wanted.keys() - new), "")
    if any(problems.values()):
        raise ValueError(_describe(problems, rules, best_fit(state_dict, model_config)))
    names = {path: f"{variable.collection}/{path}" for path, variable in wanted.items()}
    values = initial_values(build_model(model_config), 0, {names[path] for path in new})
    for path in wanted.keys() - new:
        arrays = [parts[path][i] for i in sorted(parts[path])]
        values[names[path]] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
    return traverse_util.unflatten_dict(values, sep="/")


def _sort_into_variables(
    rules: Sequence[Rule], state_dict: Mapping[str, np.ndarray], wanted: dict[str, _Variable]
) -> tuple[dict[str, dict[int, np.ndarray]], dict[str, dict[str, str]]]:
    """Path -> number of the part -> array; and kind of problem -> PyTorch name -> details."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    problems: dict[str, dict[str, str]] = {kind: {} for kind in PROBLEMS}
    for name, value in state_dict.items():
        current_name = functools.reduce(lambda text, change: change[0].sub(change[1], text), RENAMED, name)
        found = find_rule(current_name, rules)
        if found is None or found[1] not in wanted:
            problems["unexpected"][name] = ""
            continue
        rule, path = found
        number = rule.part[0]
        if number in parts.setdefault(path, {}):
            problems["unexpected"][name] = f" (is {current_name}, which is there as well)"
            continue
        array = np.asarray(value)
        if problem := _problem(array, rule.shape_of(wanted[path].shape)):
            kind, details = problem
            problems[kind][name] = details
            parts[path][number] = array  # it is there, so it is not reported as missing
        else:
            parts[path][number] = rule.to_flax(array.astype(np.float32, copy=False))
    return parts, problems


def _missing_names(
    rules: Sequence[Rule], parts: Mapping[str, Mapping[int, np.ndarray]], paths: Iterable[str]
) -> list[str]:
    return [
        name
        for path in paths
        for rule in rules
        if (name := rule.name_of(path)) and rule.part[0] not in parts.get(path, {})
    ]


def _problem(value: np.ndarray, shape: tuple[int, ...]) -> tuple[str, str] | None:
    """The kind of problem and details, if the value does not fit a parameter of this shape."""
    if value.shape != shape:
        return "of another shape", f" is {value.shape}, the model's is {shape}"
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return "not floating-point numbers", f" is {value.dtype}"
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is reported
        finite = np.isfinite(value.astype(np.float32, copy=False)).all()
    return None if finite else ("not finite (NaN or infinite)", "")


def _is_of_class_head(name: str, rules: Sequence[Rule]) -> bool:
    return any((rule.path_of(name) or "").startswith(CLASS_HEAD) for rule in rules)


def _describe(problems: dict[str, dict[str, str]], rules: Sequence[Rule], fit: str) -> str:
    """One message about all problems; `fit` says what fits better, if that is known."""
    lines = ["the weights do not fit the model of this configuration:"]
    if fit:
        lines.append(f"  {fit}")
    for kind, names in problems.items():
        if names:
            lines.append(f"  {len(names)} {kind}:")
            listed = sorted(_list_names(names))
            lines += [f"    {shorten(line, 200)}" for line in listed[:LINES_LISTED]]
            if len(listed) > LINES_LISTED:
                lines.append(f"    ... and {len(listed) - LINES_LISTED} more lines like these")
    if all(_is_of_class_head(name, rules) for names in problems.values() for name in names):
        lines.append(
            "Only the class head differs: ask for a new one (new_class_head), or set model.num_classes to theirs."
        )
    else:
        lines.append("Is this the configuration that the weights belong to?")
    return "\n".join(lines)


def _list_names(names: dict[str, str]) -> list[str]:
    """Names with their details, a line each; in long lists a line for all that differ only in their numbers."""
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
