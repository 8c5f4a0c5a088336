"""The API pages: one page for each chapter of the package, one entry for each module that exists.

In a page, `<!-- modules: models: fasseg, pixel_decoder -->` becomes an entry for every module of `fasseg_jax/models/`:
those that are named come first, in this order, and all others follow in alphabetical order.
"""

import ast
import re
from pathlib import Path
from typing import Any

__all__ = ["MARK", "modules_of", "on_page_markdown"]

PACKAGE = Path(__file__).parents[2] / "fasseg_jax"
MARK = re.compile(r"<!-- modules: (\w+)(?:: ([\w., ]+))? -->")


def modules_of(chapter: str, first: tuple[str, ...] = ()) -> list[str]:
    """The modules of a chapter by their full names, without command lines (`__main__`).

    Args:
      chapter: a folder of the package, or a module that is a chapter by itself.
      first: modules that begin the list, in this order, e.g. ("fasseg", "backbones.resnet").

    Raises:
      ValueError: the chapter has no module of a name in `first`.
    """
    paths = sorted((PACKAGE / chapter).rglob("*.py")) or [PACKAGE / f"{chapter}.py"]
    shown = [path for path in paths if path.name != "__main__.py" and (path.name != "__init__.py" or _defines(path))]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in shown]
    names = [name.removesuffix(".__init__") for name in names]
    wanted = [f"{PACKAGE.name}.{chapter}.{name}" for name in first]
    if unknown := set(wanted) - set(names):
        raise ValueError(f"docs: fasseg_jax/{chapter} has no module {', '.join(sorted(unknown))}")
    return wanted + [name for name in names if name not in wanted]


def _defines(path: Path) -> bool:
    """Whether a module defines anything itself, rather than only importing it."""
    defining = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    nodes = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, defining)]
    return any(not ast.unparse(node).startswith("__") for node in nodes)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each mark by the entries of a chapter. MkDocs calls this hook for every page."""

    def entries(match: re.Match) -> str:
        chapter, first = match.groups()
        modules = modules_of(chapter, tuple(re.split(r", ?", first)) if first else ())
        return "\n\n".join(f"::: {module}" for module in modules)

    return MARK.sub(entries, markdown)
