"""Loading a configuration, giving old names their new ones, and comparing two configurations."""

import importlib.util
import inspect
import sys
import traceback
from types import ModuleType
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from fasseg_jax.runtime.files import Path

__all__ = ["RECIPES", "RENAMED", "changed_fields", "flat_fields", "load_config", "rename_old", "renamed_argument"]

# The recipes of this package: a wheel holds them inside of it, a clone beside it.
PACKAGE = Path(__file__).parents[1]
RECIPES = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "configs"

# Names that older recipes, commands and checkpoints hold -> today's. "GROUP.FIELD" renames a field, and
# "GROUP.FIELD=VALUE" a value.
RENAMED: dict[str, str] = {
    "model.deformable_attention=dense": "model.deformable_attention=tpu",
    "model.deformable_attention=fused": "model.deformable_attention=gpu",
}

# What may be written on the command line for a value of another kind -> what it stands for.
SHORT_FORMS = {"train.batch_size=auto": "train.fit_batch_size=True"}

# Fields that do not influence what is learned.
IMMATERIAL = (
    "data.num_threads",
    "data.prefetch",
    "data.root",
    "model.deformable_attention",
    "model.remat",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.lost_host_seconds",
    "train.watchdog_minutes",
    "train.trackers",
    "train.evaluate_every",
    "train.patience",
    "train.evaluation_stride",
    "train.shard_parameters",
    "train.init",
    "train.fit_batch_size",  # what it finds is in train.batch_size
)
# Fields that decide which parameters a model has; only the model's dtype is none of them.
ARCHITECTURE = "model."


def load_config(path: str) -> ConfigDict:
    """Evaluate a recipe.

    Args:
      path: "NAME:VARIANT" or "NAME". NAME is a recipe of this package, for example "ade20k:r50", or the path of a file,
        for example "configs/ade20k.py:r50". Files of configs/ are found from every working directory.

    Raises:
      FileNotFoundError: there is no such recipe.
      ValueError: the file is no recipe, knows no such variant, or holds a mistake; the message names file and line.
    """
    name, _, variant = str(path).partition(":")
    file = _find(name)
    spec = importlib.util.spec_from_file_location(f"fasseg_jax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{name}: a recipe is a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = _call(module, name, variant)
    except (ValueError, OSError) as error:  # what recipes raise to tell their users something
        told = name in str(error) or (variant and variant in str(error))
        raise ValueError(str(error) if told else f"{name}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{_position(error, file)}: {type(error).__name__}: {error}") from error
    rename_old(config)
    return config


def _call(module: ModuleType, name: str, variant: str) -> ConfigDict:
    """The configuration that a recipe's `get_config` returns."""
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{name}: not a recipe, because it defines no function get_config")
    arguments = [variant] if variant else []
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        problem = f"has no variants, but {variant!r} is asked for" if variant else f"needs a variant: {name}:VARIANT"
        raise ValueError(f"{name}: this recipe {problem}") from None
    config = get_config(*arguments)
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{name}: get_config must return a ConfigDict; it returned {config!r:.80}")
    return config


def _find(name: str) -> Path:
    """The file of a recipe: first in the working directory, then among those of this package."""
    given = Path(name)
    own = [RECIPES / given.with_suffix(".py").name] if given.name and given.parent in (Path(), Path("configs")) else []
    candidates = [given, *own] if given.suffix == ".py" else [*own, given]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    folder = given.parent if given.parent.is_dir() and given.parent != Path() else RECIPES
    suffix = given.suffix if given.suffix == ".py" else ""
    names = sorted(f"{path.stem}{suffix}" for path in folder.glob("*.py"))
    there = f"; {'there are' if folder == RECIPES else f'{folder} has'} {', '.join(names[:10])}" if names else ""
    raise FileNotFoundError(f"there is no recipe {name!r}{there}")


def _position(error: BaseException, file: Path) -> str:
    """FILE, line N: the last line of the recipe that ran before `error`."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}, line {lines[-1]}" if lines else str(file)


def rename_old(config: ConfigDict) -> None:
    """Replace the old names in a configuration by the new ones, in place, and print a line for each."""
    for old, new in RENAMED.items():
        field, _, value = old.partition("=")
        new_field, _, new_value = new.partition("=")
        fields = flat_fields(config)
        if field not in fields or (value and fields[field] != value):
            continue
        print(f"config.{old} is now called config.{new}", file=sys.stderr)
        with config.unlocked():
            _delete(config, field)
            config.update_from_flattened_dict({new_field: new_value or fields[field]})


def renamed_argument(argument: str, flag: str) -> str:
    """Replace the old name of a field in a command line's argument, --FLAG.FIELD=VALUE, and print a line if it has one.

    `rename_old` does the same for old values, once they are in the configuration. A short form, `SHORT_FORMS`, is
    written out.
    """
    name, equals, value = argument.partition("=")
    for short, long in SHORT_FORMS.items():
        if argument.lstrip("-") == f"{flag}.{short}":
            return f"--{flag}.{long}"
    new = RENAMED.get(name.removeprefix(f"--{flag}."))
    if new is None or not name.startswith(f"--{flag}."):
        return argument
    print(f"{name} is now called --{flag}.{new}", file=sys.stderr)
    return f"--{flag}.{new}{equals}{value}"


def _delete(config: ConfigDict, field: str) -> None:
    *groups, name = field.split(".")
    for group in groups:
        config = config[group]
    del config[name]


def changed_fields(saved: ConfigDict, current: ConfigDict) -> dict[str, str]:
    """Find the fields that matter and differ.

    Args:
      saved: the configuration of the run's checkpoints.
      current: the configuration with which the run goes on.

    Returns:
      Name -> a line that says the old and the new value.

    Raises:
      ValueError: the network's architecture changed, so that the run's checkpoints do not fit.
    """
    before, after = flat_fields(saved), flat_fields(current)
    changed = {
        name: f"config.{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if name not in IMMATERIAL and before.get(name) != after.get(name)
    }
    architecture = [line for name, line in changed.items() if name.startswith(ARCHITECTURE) and name != "model.dtype"]
    if architecture:
        raise ValueError(
            f"this run's checkpoints are of another network: {'; '.join(architecture)}. Use another --workdir"
        )
    return changed


def flat_fields(config: ConfigDict) -> dict[str, Any]:
    """Values by dotted name. Lists become tuples, since overrides may hold either."""
    fields = flatten_dict(config.to_dict(), sep=".")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
