"""Finds the files of annotations, and the photos that they name."""

import os
import re
from collections import defaultdict

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.folder_words import split_of
from fasseg_jax.data.images import list_photos
from fasseg_jax.runtime.files import Path, list_files

__all__ = ["PhotoIndex", "files_of", "output_name", "split_in"]


def files_of(source: Path, ending: str) -> list[Path]:
    """The files below a folder that end in `ending`, hidden ones left out; of a file, itself."""
    files = list_files(source) if source.is_dir() else [source]
    return [file for file in files if file.suffix.lower() == ending and not file.name.startswith(".")]


class PhotoIndex:
    """The photos below some folders, found by the ends of their paths."""

    def __init__(self, *folders: Path | None, exclude: Path | None = None):
        """Search the folders but for `exclude`; those that are None are left out."""
        self.folders = [folder for folder in folders if folder is not None]
        self._paths: dict[str, list[Path]] = defaultdict(list)  # by the file name in lower case
        known: set[Path] = set()
        for folder in self.folders:
            for path in list_photos(folder, exclude).paths:
                if path not in known:
                    known.add(path)
                    self._paths[path.name.casefold()].append(path)

    @property
    def paths(self) -> list[Path]:
        """All photos, sorted."""
        return sorted(path for paths in self._paths.values() for path in paths)

    def find(self, reference: str, *beside: Path) -> Path:
        """Find a photo.

        Args:
          reference: the path that an annotation gives, of any system; it may be of another machine.
          beside: folders to which the path may be relative; they come before a search by name.

        Raises:
          DataError: no photo fits, or several do.
        """
        parts = [part for part in re.split(r"[/\\]+", reference) if part]
        if not parts or "\0" in reference:
            raise DataError(f"names no photo ({reference!r})")
        for folder in beside:
            path = folder / "/".join(parts) if not reference.startswith(("/", "\\")) else Path(reference)
            try:
                if path.is_file():
                    return Path(os.path.normpath(path))
            except OSError:  # a name that is too long, for example
                pass
        candidates = self._paths.get(parts[-1].casefold(), [])
        for length in range(2, len(parts) + 1):  # more of the path decides among photos of the same name
            ending = [part.casefold() for part in parts[-length:]]
            fitting = [path for path in candidates if [part.casefold() for part in path.parts[-length:]] == ending]
            if len(candidates) <= 1 or not fitting:
                break
            candidates = fitting
        if len(candidates) == 1:
            return candidates[0]
        places = ", ".join(map(str, self.folders))
        if candidates:
            listing = ", ".join(map(str, candidates[:3]))
            raise DataError(
                f"{len(candidates)} photos are called {parts[-1]!r}: {listing}; rename or remove all but one"
            )
        raise DataError(f"there is no photo {reference!r} below {places}; add it, or name its folder by --photos")


def output_name(photo: Path, *folders: Path | None) -> str:
    """The name of a photo's results: its path below the first of the folders that holds it, or its file name."""
    for folder in folders:
        if folder is not None and photo.is_relative_to(folder):
            return photo.relative_to(folder).as_posix()
    return photo.name


def split_in(name: str) -> tuple[str | None, str]:
    """The split that a folder in a path names, and the path without that folder."""
    parts = name.split("/")
    for index, part in enumerate(parts[:-1]):
        if split := split_of(part):
            return split, "/".join(parts[:index] + parts[index + 1 :])
    return None, name
