"""The tables of models, from scripts/models.json and scripts/published.json.

In a page, `<!-- models -->` becomes the table of the recipes in configs/ade20k.py, `<!-- models: frozen -->` that of
frozen backbones, and `<!-- models: measured -->` says how scripts/measure_models.py measured them.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["on_page_markdown"]

SCRIPTS = Path(__file__).parents[2] / "scripts"
MISSING = "–"


def all_models() -> str:
    """The table of all recipes, the smallest number of multiply-adds first, without columns that nobody measured."""
    published = _read("published")
    batch = _read("models").get("batch", 8)
    columns: dict[str, list[str]] = {}
    for recipe, model in _models():
        one, several, train = (
            model["programs"].get(name) for name in ("forward_1", f"forward_{batch}", f"train_{batch}")
        )
        cells = {
            "Recipe": f"`{_variant(recipe)}`",
            "Parameters": f"{model['parameters'] / 1e6:.0f}M",
            "Multiply-adds": f"{model['multiply_adds'] / 1e9:.0f} G",
            "One image": _time_and_memory(one),
            "Images a second": f"{batch / several['median_s']:.0f}" if several else MISSING,
            "Training step": _time_and_memory(train),
            "Published mIoU": _published(published.get(recipe, {})),
        }
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    return _table({name: cells for name, cells in columns.items() if set(cells) != {MISSING}})


def frozen_backbones() -> str:
    """The table of training steps with the backbone trained and frozen."""
    batch = _read("models").get("batch", 8)
    train, frozen = f"train_{batch}", f"frozen_{batch}"
    both = [
        (_variant(recipe), model["programs"][train], model["programs"][frozen])
        for recipe, model in _models()
        if {train, frozen} <= model["programs"].keys()
    ]
    if not both:
        return "Nobody has measured this yet."
    return _table(
        {
            "Recipe": [f"`{variant}`" for variant, _, _ in both],
            "Step, trained": [_time(train) for _, train, _ in both],
            "frozen": [_time(frozen) for _, _, frozen in both],
            "Memory, trained": [_gigabytes(train) for _, train, _ in both],
            "frozen ": [_gigabytes(frozen) for _, _, frozen in both],
        }
    )


def measured() -> str:
    """What was measured, and where."""
    figures = _read("models")
    size = f"Multiply-adds are those of one image of {figures['side']}x{figures['side']}."
    if "machine" not in figures:
        return f"{size} Nobody has measured times yet."
    machine = figures["machine"]
    return (
        f"{size} Times and memory are of the same size on {machine['device']} with jax {machine['jax']} in "
        f"{machine['dtype']}, with random weights: the median of at least five runs, and the most memory that was in "
        f"use (of a CPU, that of the whole process). A training step has {figures.get('batch', 8)} images, each with 8 "
        "classes."
    )


TABLES: dict[str, Callable[[], str]] = {"": all_models, "frozen": frozen_backbones, "measured": measured}


def _table(columns: dict[str, list[str]]) -> str:
    rows = [list(columns), ["---"] * len(columns), *map(list, zip(*columns.values(), strict=True))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _variant(recipe: str) -> str:
    return recipe.partition(":")[2]


def _time(program: dict[str, Any] | None) -> str:
    if program is None:
        return MISSING
    seconds = program["median_s"]
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.{0 if seconds > 0.1 else 1}f} ms"


def _time_and_memory(program: dict[str, Any] | None) -> str:
    return f"{_time(program)}, {_gigabytes(program)}" if program else MISSING


def _gigabytes(program: dict[str, Any] | None) -> str:
    return f"{program['peak_mb'] / 1024:.1f} GB" if program else MISSING


def _published(entry: dict[str, Any]) -> str:
    """A model's published mIoU and its source, in words."""
    if "single" not in entry:
        return "none"
    multi_scale = f" / {entry['multi_scale']}" if "multi_scale" in entry else ""
    return f"{entry['single']}{multi_scale} ({entry['source']})"


def _models() -> list[tuple[str, dict[str, Any]]]:
    return sorted(_read("models")["models"].items(), key=lambda item: item[1]["multiply_adds"])


def _read(name: str) -> dict[str, Any]:
    return json.loads((SCRIPTS / f"{name}.json").read_text("utf-8"))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks in a page. MkDocs calls this hook for every page."""
    return re.sub(r"<!-- models(?:: (\w+))? -->", lambda match: TABLES[match[1] or ""](), markdown)
