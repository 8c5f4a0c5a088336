"""Says how to import a folder that training cannot read as it is."""

import shlex

from fasseg_jax.data.class_files import NoClassesError
from fasseg_jax.data.classes import DataError
from fasseg_jax.data.folder_layout import LayoutError
from fasseg_jax.data.folder_tree import LAYOUTS, show_tree
from fasseg_jax.importing.formats.registry import FORMATS, find_format
from fasseg_jax.runtime.command_line import add_advice, other_program
from fasseg_jax.runtime.files import Path

__all__ = ["explain", "suggest_import"]


def suggest_import(folder: Path, readable: bool = False) -> list[str]:
    """The command that imports a folder, as lines; none if no format is recognized in it.

    Args:
      folder: of the data.
      readable: whether some of its label maps can be read. Then only masks of 0 and 255 need an import: label maps with
        a palette look like masks of colors.
    """
    try:
        name = find_format(folder)
    except (DataError, OSError, RecursionError):
        return []
    if readable and name != "binary_masks":
        return []
    command = f"{other_program('import')} --input {shlex.quote(str(folder))} --output {_output(folder)}"
    return [f"{folder} looks like {FORMATS[name].title}. This turns it into a folder to train from:", f"  {command}"]


def _output(folder: Path) -> str:
    """A new folder beside a folder, in quotes if the shell needs them."""
    name = f"{folder.resolve().name}-imported"
    return shlex.quote(str(folder.parent / name if folder.name else folder.resolve().with_name(name)))


def explain(error: DataError, folder: Path) -> None:
    """Add advice to an error of a folder: if photos are not found, what is there and what was looked for; an import."""
    if not isinstance(error, LayoutError | NoClassesError) or not folder.is_dir():
        return
    command = suggest_import(folder)
    tree = ["This is there:", *(f"  {line}" for line in show_tree(folder))]
    layouts = ["These can be read:", *(f"  {line}" for line in LAYOUTS.splitlines())]
    add_advice(
        error,
        [
            *(tree if isinstance(error, LayoutError) else []),
            *(layouts if type(error) is LayoutError and not command else []),
            *command,
        ],
    )
