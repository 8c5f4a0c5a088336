"""Shows what a folder holds, and what it should: for messages about data that are not found."""

import os
from collections import Counter

from fasseg_jax.runtime.files import Path

__all__ = ["LAYOUTS", "show_tree"]

# What `find_layout` looks for, for people.
LAYOUTS = """\
images/train/NAME.jpg   with  annotations/train/NAME.png   and the same with val
train/images/NAME.jpg   with  train/masks/NAME.png         and the same with val
images/NAME.jpg         with  masks/NAME.png               a part becomes the validation photos
NAME.jpg                with  NAME_mask.png                likewise
folders may be called images, photos; annotations, labels, masks; train, training; val, valid, validation"""

LINES = 14  # of a tree
DEPTH = 3


def show_tree(folder: Path) -> list[str]:
    """The folders below a folder with the number of files of each extension, as lines, two levels deep.

    Folders that hold nothing but others in a row are one line; hidden files and folders are left out.
    """
    lines = [f"{folder}/{_files(folder)}"]
    _add(folder, 1, lines)
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"  ... and {len(lines) - LINES + 1} more folders"]


def _add(folder: Path, depth: int, lines: list[str]) -> None:
    if depth > DEPTH or len(lines) > 10 * LINES:
        return
    for name in _entries(folder, folders=True):
        lines.append(f"{'  ' * depth}{name}/{_files(folder / name)}")
        _add(folder / name, depth + 1, lines)


def _entries(folder: Path, folders: bool) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(each.name for each in entries if each.name[0] != "." and each.is_dir() == folders)
    except OSError:
        return []


def _files(folder: Path) -> str:
    """The number of files of each extension, the most frequent first, or the name of a single file."""
    files = _entries(folder, folders=False)
    counts = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in files)
    parts = []
    for extension, count in counts.most_common(4):
        single = [name for name in files if (os.path.splitext(name)[1].lower() or "without extension") == extension]
        parts.append(single[0] if count == 1 else f"{count} {extension}")
    more = len(files) - sum(count for _, count in counts.most_common(4))
    return ("  " + ", ".join([*parts, *([f"{more} others"] if more else [])])) if parts else ""
