"""The notebook as a page of the site: executed, so that the page shows what the code of today gives.

`notebook/tour.ipynb` is kept without results. With EXECUTE_NOTEBOOK=false the page shows the code alone, which is quick
while one writes other pages.
"""

from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

__all__ = ["execute", "on_files"]

DOCS = Path(__file__).parents[1]
NOTEBOOK = DOCS / "notebook" / "tour.ipynb"
TIMEOUT = 600  # seconds for a cell


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with its results; an error in a cell raises `CellExecutionError`, which shows the cell."""
    notebook = nbformat.read(path, as_version=4)
    root = str(DOCS.parent)  # whence the notebook finds configs/
    return NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": root}}).execute()


def on_files(files: Any, config: Any) -> None:
    """Hook of MkDocs: add the page and its pictures."""
    notebook = execute(NOTEBOOK) if config.extra["execute_notebook"] else nbformat.read(NOTEBOOK, as_version=4)
    folder = NOTEBOOK.parent.relative_to(DOCS).as_posix()
    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)
    text, resources = exporter.from_notebook_node(notebook, resources={"unique_key": NOTEBOOK.stem})
    files.append(File.generated(config, f"{folder}/{NOTEBOOK.stem}.md", content=text))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, f"{folder}/{name}", content=content))
