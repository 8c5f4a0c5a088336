"""The table of models, from scripts/models.json and scripts/published.json.

In a page, `<!-- models: ade20k -->` becomes the table of the recipes in configs/ade20k.py, and `<!-- machine -->` the
machine on which scripts/measure_models.py measured them.
"""

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["on_page_markdown", "table"]

SCRIPTS = Path(__file__).parents[2] / "scripts"


def table(name: str) -> str:
    """The table of the recipes in configs/NAME.py, the smallest number of multiply-adds first."""
    measured, published = _read("models")["models"], _read("published")
    rows = ["| Recipe | Parameters | Multiply-adds | Time | Memory | Published mIoU |", "|---|---|---|---|---|---|"]
    for recipe, figures in sorted(measured.items(), key=lambda item: item[1]["multiply_adds"]):
        file, _, variant = recipe.partition(":")
        if file == name:
            rows.append(
                f"| `{variant}` | {figures['parameters'] / 1e6:.1f}M | {figures['multiply_adds'] / 1e9:.0f} G "
                f"| {figures['seconds']:.2f} s | {figures['peak_mb']} MB | {_published(published.get(recipe, {}))} |"
            )
    return "\n".join(rows)


def _published(entry: dict[str, Any]) -> str:
    """A model's published mIoU and its source, in words."""
    if "single" in entry:
        multi_scale = f" / {entry['multi_scale']}" if "multi_scale" in entry else ""
        return f"{entry['single']}{multi_scale} ({entry['source']})"
    return f"not trained; with another decoder {entry['elsewhere']}" if "elsewhere" in entry else "not trained"


def _read(name: str) -> dict[str, Any]:
    return json.loads((SCRIPTS / f"{name}.json").read_text("utf-8"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page. MkDocs calls this hook for every page."""
    if "<!-- machine -->" in markdown:
        markdown = markdown.replace("<!-- machine -->", _read("models")["machine"])
    return re.sub(r"<!-- models: (\w+) -->", lambda match: table(match[1]), markdown)
