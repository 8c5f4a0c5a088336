"""The package's layout: chapters import downwards only, and no modules import each other in a circle."""

import ast
import functools
from pathlib import Path

import pytest

from tests.helpers import ROOT

# Chapter -> the chapters that it may import. The order is that of the README's tree, from the bottom up.
MAY_IMPORT = {
    "runtime": set(),
    "config": {"runtime"},
    "data": {"runtime", "config"},
    "importing": {"data", "runtime"},
    "ops": {"runtime"},
    "models": {"ops", "config"},
    "losses": {"models", "ops"},
    "visualization": {"data", "runtime"},
    "weights": {"models", "data", "config", "runtime"},
    "inference": {"weights", "models", "ops", "visualization", "data", "config", "runtime"},
    "evaluation": {"inference", "weights", "visualization", "data", "config", "runtime"},
    "summary": {"inference", "weights", "models", "ops", "visualization", "data", "config", "runtime"},
    "training": {
        *("summary", "evaluation", "inference", "losses", "weights", "models", "ops", "visualization"),
        *("data", "config", "runtime"),
    },
    "export": {"inference", "weights", "models", "ops", "visualization", "data", "config", "runtime"},
    "serving": {"inference", "weights", "models", "ops", "visualization", "data", "config", "runtime"},
    "demo": {"serving", "runtime"},
    "programs": {
        *("training", "evaluation", "inference", "weights", "importing", "visualization", "data", "config", "runtime"),
        "",  # the version
    },
    "__main__": {"programs"},
}


@functools.cache
def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports anywhere, also inside functions."""
    paths = {module_name(path): path for path in sorted((ROOT / "fasseg_jax").rglob("*.py"))}
    return {name: imported_modules(path, paths.keys()) for name, path in paths.items()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write the absolute name of the module"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return {name for name in found if name in modules}


def chapter(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_chapter_is_in_the_table():
    assert {chapter(module) for module in imports()} - {""} == MAY_IMPORT.keys()


@pytest.mark.parametrize("importer", MAY_IMPORT)
def test_a_chapter_imports_downwards_only(importer):
    forbidden = [
        f"{module} imports {imported}"
        for module, targets in imports().items()
        for imported in targets
        if chapter(module) == importer and chapter(imported) not in MAY_IMPORT[importer] | {importer}
    ]
    assert not forbidden, "\n".join(forbidden)


def test_no_modules_import_each_other_in_a_circle():
    """Remove modules that import nothing which is left; what remains in the end is circles."""
    left = {module: set(targets) for module, targets in imports().items()}
    while free := {module for module, targets in left.items() if not targets & left.keys()}:
        left = {module: targets for module, targets in left.items() if module not in free}
    assert not left, f"circles among {sorted(left)}"


def test_the_programs_at_the_top_are_imported_by_nothing():
    programs = {path.stem for path in ROOT.glob("*.py")}
    for path in (ROOT / "fasseg_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not programs & {name.split(".")[0] for name in names}, path


OUTSIDE = [path for folder in ("benchmarks", "configs", "docs", "scripts") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_files_outside_of_the_package_import_exists(path):
    """A name that has moved is noticed without running every benchmark."""
    imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if node.module and node.module.split(".")[0] == "fasseg_jax":
            names = [alias.name for alias in node.names]
            module = __import__(node.module, fromlist=names)
            assert all(hasattr(module, name) for name in names), f"{path.name}, line {node.lineno}: {names}"
