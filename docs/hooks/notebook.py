"""The notebook as a page of the site.

`notebook/tour.ipynb` is kept without results. The hook executes it, so the page shows what today's code gives. With
EXECUTE_NOTEBOOK=false the page shows only the code, which is quick while you write other pages.
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
TIMEOUT = 600  # seconds a cell may take


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with its results. An error in a cell raises `CellExecutionError`, which shows the cell."""
    notebook = nbformat.read(path, as_version=4)
    root = str(DOCS.parent)  # the notebook reads configs/ from here
    return NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": root}}).execute()


def on_files(files: Any, config: Any) -> None:
    """Add the page and its pictures. MkDocs calls this hook once."""
    notebook = execute(NOTEBOOK) if config.extra["execute_notebook"] else nbformat.read(NOTEBOOK, as_version=4)
    folder = NOTEBOOK.parent.relative_to(DOCS).as_posix()
    exporter = MarkdownExporter()
    exporter.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)
    text, resources = exporter.from_notebook_node(notebook, resources={"unique_key": NOTEBOOK.stem})
    files.append(File.generated(config, f"{folder}/{NOTEBOOK.stem}.md", content=text))
    for name, content in resources["outputs"].items():
        files.append(File.generated(config, f"{folder}/{name}", content=content))
