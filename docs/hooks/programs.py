"""The descriptions and flags of the programs, read from their source.

In a page, `<!-- program: fasseg_jax/programs/train.py -->` becomes the docstring of the program and the table of its
flags.
"""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

__all__ = ["Flag", "flags_of", "on_page_markdown", "program_section"]

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of a program: its name, its default as the source writes it, and its help."""

    name: str
    default: str
    help: str


def flags_of(source: str) -> list[Flag]:
    """Return the flags that a program defines by absl's `flags.DEFINE_...` or argparse's `add_argument`, in order.

    Raises:
      ValueError: a flag has no help.
    """
    return [
        _absl_flag(call) if call.func.attr.startswith("DEFINE_") else _argparse_flag(call)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and (call.func.attr.startswith("DEFINE_") or call.func.attr == "add_argument")
    ]


def _absl_flag(call: ast.Call) -> Flag:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    help_text = keywords.get("help_string") or keywords.get("help")
    values = call.args[1:]
    if help_text is None and values:
        *values, help_text = values
    default = keywords.get("default", values[0] if values else None)
    if call.func.attr == "DEFINE_enum":
        return _flag(call.args[0], default, help_text, call.args[2])
    return _flag(call.args[0], default, help_text)


def _argparse_flag(call: ast.Call) -> Flag:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    return _flag(call.args[0], keywords.get("default"), keywords.get("help"), keywords.get("choices"))


def _flag(
    name: ast.expr, default: ast.expr | None, help_text: ast.expr | None, choices: ast.expr | None = None
) -> Flag:
    name = ast.literal_eval(name).lstrip("-")
    try:
        text = ast.literal_eval(help_text)
    except ValueError:
        raise ValueError(f"docs: the flag --{name} needs a plain string as its help") from None
    if choices is not None:
        text = f"{text} One of {', '.join(f'`{choice}`' for choice in ast.literal_eval(choices))}."
    shown = "" if default is None or ast.unparse(default) in ("None", "''") else ast.unparse(default).replace("'", '"')
    return Flag(name, shown, text)


def program_section(file: str) -> str:
    """Return Markdown about a program: its docstring and its flags."""
    source = (ROOT / file).read_text("utf-8")
    flags = flags_of(source)
    description = _mark_flags(ast.get_docstring(ast.parse(source)))
    rows = [
        f"| `--{flag.name}` | {f'`{flag.default}`' if flag.default else ''} | {_mark_flags(flag.help)} |"
        for flag in flags
    ]
    return "\n".join([description, "", "| Flag | Default | Meaning |", "|---|---|---|", *rows])


def _mark_flags(text: str) -> str:
    """Set flags as code, except in indented lines, which are code already."""
    flag = re.compile(r"(?<![\w`-])--\w[\w.]*(=\w+)?(?<!\.)")
    return "\n".join(line if line.startswith("    ") else flag.sub(r"`\g<0>`", line) for line in text.split("\n"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark by a program's description. MkDocs calls this hook for every page."""
    return re.sub(r"<!-- program: (.+?) -->", lambda match: program_section(match[1]), markdown)
