"""The configuration reference, made from `fasseg_jax/config/base.py` and the recipes in `configs/`.

Every field of `base_config()` has a comment in the source, above its line or at the end of it. This hook collects
names, comments and default values, and the ranges of `fasseg_jax/config/schema.py`, so that the reference always says
what the code does. In a page,

    <!-- fields: model -->      becomes the table of `config.model`
    <!-- dependences -->       becomes the list of what fields must fulfil together
    <!-- recipes -->            becomes what each file in configs/ says about itself, and what it changes
"""

import ast
import dataclasses
import importlib.util
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fasseg_jax.config import base, flat_fields
from fasseg_jax.config.rules import Rule, Sequence
from fasseg_jax.config.schema import BACKBONES, DEPENDENCES, FIELDS

__all__ = ["Field", "fields_of", "on_page_markdown", "recipe_section", "recipes"]

CONFIGS = Path(__file__).parents[2] / "configs"
SOURCE = Path(base.__file__)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the configuration, or a group of fields.

    Attributes:
      name: dotted, without "config.".
      comment: from the source, on one line; empty if there is none.
      default: the value; for a group, a dictionary.
    """

    name: str
    comment: str
    default: Any

    @property
    def is_group(self) -> bool:
        return isinstance(self.default, dict)


def fields_of(function: Callable[..., ConfigDict], prefix: str = "") -> list[Field]:
    """List all fields and groups that a function of `fasseg_jax/config/base.py` makes, in the order of the source.

    Args:
      function: `base_config`, or one that makes a backbone. The smallest of each kind gives the defaults.
      prefix: of the names, e.g. "model.backbone.".

    Raises:
      ValueError: the function makes a field outside of a dictionary, where its comment is not found.
    """
    arguments = {"resnet": (50,), "swin": ("t",), "convnext": ("t",), "vit": ("s",)}.get(function.__name__, ())
    config = function(*arguments)
    comments = _comments(SOURCE.read_text("utf-8"))
    tree = ast.parse(inspect.getsource(function)).body[0]
    first_line = inspect.getsourcelines(function)[1] - 1
    fields = [
        Field(
            prefix + name, _comment_of(comments, key + first_line, value + first_line), _value(config.to_dict(), name)
        )
        for name, key, value in _entries(tree)
    ]
    found = {field.name.removeprefix(prefix) for field in fields}
    missed = {name for name in flat_fields(config) if not any(f"{name}.".startswith(f"{key}.") for key in found)}
    if missed:
        raise ValueError(f"{SOURCE.name}: write these fields of {function.__name__}() in a dictionary: {missed}")
    return fields


def _entries(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield the dotted name of each dictionary entry, the line of its key, and the last line of its value.

    A group that spans several lines has the line of its key twice.
    """
    for child in ast.walk(node) if isinstance(node, ast.FunctionDef) else ():
        if isinstance(child, ast.Assign) and isinstance(child.targets[0], ast.Attribute):
            if isinstance(child.value, ast.Call) and child.value.args:  # config.data = ConfigDict({...})
                yield child.targets[0].attr, child.lineno, child.lineno
                yield from _entries(child.value.args[0], f"{child.targets[0].attr}.")
        elif isinstance(child, ast.Return) and isinstance(child.value, ast.Call):  # return ConfigDict({...})
            yield from _entries(child.value.args[0])
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            name = f"{prefix}{key.value}"
            is_spread = isinstance(value, ast.Dict) and value.end_lineno > key.lineno
            yield name, key.lineno, key.lineno if is_spread else value.end_lineno
            yield from _entries(value, f"{name}.")


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """The comments by line, each with whether it has the line to itself."""
    lines = source.splitlines()
    return {
        token.start[0]: (token.string.lstrip("# "), lines[token.start[0] - 1].lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }


def _comment_of(comments: dict[int, tuple[str, bool]], first: int, last: int) -> str:
    """Join the lines of comment above line `first` and the comment at the end of line `last`."""
    above = []
    line = first - 1
    while comments.get(line, ("", False))[1]:
        above.insert(0, comments[line][0])
        line -= 1
    text, has_line_to_itself = comments.get(last, ("", True))
    return " ".join(above + ([] if has_line_to_itself else [text]))


def _value(values: dict, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def recipes() -> dict[str, tuple[str, dict[str, dict[str, Any]]]]:
    """For each file in configs/: its docstring, and by variant the fields that differ from the base, with values."""
    defaults = flat_fields(base.base_config())
    found = {}
    for file in sorted(CONFIGS.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"recipe_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        variants = {}
        if file.stem != "folder":  # its number of classes is that of the folder that the user gives
            for variant in getattr(module, "BACKBONES", {"": None}):
                fields = flat_fields(module.get_config(*filter(None, [variant])))
                variants[variant] = {name: value for name, value in fields.items() if defaults.get(name) != value}
        found[file.name] = inspect.cleandoc(module.__doc__), variants
    return found


def recipe_section(name: str, description: str, variants: dict[str, dict[str, Any]]) -> str:
    """Return Markdown about one recipe."""
    parts = [f"### `configs/{name}`", description]
    for variant, changes in variants.items():
        title = f"`{variant}`" if variant else "This recipe"
        if not changes:
            parts.append(f"{title} is the base as it stands.")
            continue
        rows = "\n".join(f"    | `{field}` | {_code(value)} |" for field, value in changes.items())
        heading = f'??? note "{title}: {len(changes)} fields differ from the base"'
        parts.append(f"{heading}\n\n    | Field | Value |\n    |---|---|\n{rows}")
    return "\n\n".join(parts)


def _code(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.0e}".replace("e-0", "e-") if 0 < value < 1e-3 else str(round(value, 4))
    else:
        text = f"{value:_}" if type(value) is int and value >= 10_000 else repr(value).replace("'", '"')
    return f"`{text}`".replace("|", "\\|")


def _table(fields: list[Field], rules: Mapping[str, Rule | Sequence]) -> str:
    rows = []
    group_comments = {field.name: field.comment for field in fields if field.is_group}
    for field in fields:
        comment = (field.comment[:1].upper() + field.comment[1:]).removesuffix(":")
        if field.comment == group_comments.get(field.name.rpartition(".")[0]):
            comment = ""  # a group on one line: the comment is in the group's row
        comment = comment.replace("|", "\\|").replace("<", "&lt;")
        default = "" if field.is_group else _code(field.default)
        rows.append(
            f'| <a id="{field.name}"></a>`{field.name}` | {default} | {_range(field.name, rules)} | {comment} |'
        )
    return "\n".join(["| Field | Default | Range | Meaning |", "|---|---|---|---|", *rows])


def _range(name: str, rules: Mapping[str, Rule | Sequence]) -> str:
    """What the schema allows for a field; empty for a group."""
    return rules[name].describe() if name in rules else ""


def _dependences() -> str:
    """A list of what fields must fulfil together."""
    return "\n".join(
        f"- {' and '.join(f'`{name}`' for name in dependence.fields)}: {dependence.words}"
        f"{' (in training)' if dependence.training else ''}."
        for dependence in DEPENDENCES
    )


def _section(name: str) -> str:
    """The tables of one section of the configuration."""
    if name.startswith("backbone "):
        kind = name.split()[1]
        return _table(fields_of(getattr(base, kind), "model.backbone."), {**FIELDS, **BACKBONES[kind]})
    fields = [field for field in fields_of(base.base_config) if field.name.split(".")[0] == name]
    if not fields:
        raise ValueError(f"docs: there is no config.{name}")
    introduction = fields[0].comment
    return f"{introduction}\n\n{_table(fields[1:], FIELDS)}".strip()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page by their tables. MkDocs calls this hook for every page."""
    markdown = re.sub(r"<!-- fields: (.+?) -->", lambda match: _section(match[1]), markdown)
    markdown = markdown.replace("<!-- dependences -->", _dependences())
    return markdown.replace(
        "<!-- recipes -->", "\n\n".join(recipe_section(name, *recipe) for name, recipe in recipes().items())
    )
