"""Data sets in folders of image files: your own, or ADE20K."""

import dataclasses
import hashlib
import os
import unicodedata

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.folder_layout import LayoutError, find_layout
from fasseg_jax.data.folder_splits import SplitRules, Splits, split_photos
from fasseg_jax.data.images import list_photos
from fasseg_jax.data.labels import (
    LABEL_ORIENTATIONS,
    decode_labels,
    decode_sample,
    file_ids,
    label_table,
    map_labels,
    read_file,
)
from fasseg_jax.data.samples import Sample
from fasseg_jax.runtime.files import Path

__all__ = [
    "FolderSource",
    "Pairing",
    "data_root",
    "file_version",
    "files_by_name",
    "find_splits",
    "open_folder",
    "pair_files",
]

NamedFiles = list[tuple[str, Path]]  # each file with the name by which it finds its partner


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Which files of a split belong together.

    Attributes:
      pairs: paths (photo, label map), in the order of their names.
      problems: files without a partner or with two, one line each.
    """

    pairs: tuple[tuple[Path, Path], ...]
    problems: tuple[str, ...]


class FolderSource:
    """Samples from pairs of files; see `Source`."""

    def __init__(
        self,
        pairing: Pairing,
        classes: ClassTable,
        table: np.ndarray,
        file_ids: np.ndarray,
        label_orientation: str = "auto",
    ):
        """Make a source of paired files.

        Args:
          pairing: which files belong together.
          classes: of the data.
          table: the training id of each id in the label maps; see `label_table`.
          file_ids: see `Source`.
          label_orientation: `config.data.label_orientation`.

        Raises:
          DataError: there is no such orientation.
        """
        if label_orientation not in LABEL_ORIENTATIONS:
            raise DataError(
                f"config.data.label_orientation = {label_orientation!r} is none of {', '.join(LABEL_ORIENTATIONS)}"
            )
        self.label_orientation = label_orientation
        self.classes = classes
        self.file_ids = file_ids
        self.problems = pairing.problems
        self.fingerprint = _fingerprint(pairing.pairs)
        self._pairs = pairing.pairs
        self._table = table

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        return decode_sample(*self.read(index), self.label_orientation)

    def version(self, index: int) -> str:
        """Names, sizes and times of both files."""
        return " ".join(f"{path} {file_version(path)}" for path in self._pairs[index])

    def read(self, index: int) -> tuple[bytes, np.ndarray, str, str]:
        """The photo's file as bytes, the labels as training ids, and the names of both files."""
        photo, label_map = self._pairs[index]
        ids = decode_labels(read_file(label_map), str(label_map), stored=self.label_orientation == "stored")
        labels = map_labels(ids, self._table, str(label_map))
        return read_file(photo), labels, str(photo), str(label_map)


def open_folder(data: ConfigDict, split: str, classes: ClassTable) -> FolderSource:
    """Open a split of your own folder, or of ADE20K (the folder `ADEChallengeData2016`).

    images/SPLIT/NAME.jpg (or .png, or any other format that Pillow reads) belongs to annotations/SPLIT/NAME.png (or
    .tif, .bmp, .gif). `find_layout` says which other layouts there may be, `split_photos` what happens without splits.

    Args:
      data: `config.data`.
      split: "training" or "validation".
      classes: of the data.

    Raises:
      DataError: no photos with label maps are found, or `data.ignore_label` is the id of a class.
    """
    splits = find_splits(data)
    if not splits.pairs[split] and not splits.problems[split]:  # to evaluate, validation photos are enough
        raise LayoutError(f"{data.root} holds no {split} photos with label maps")
    pairs = tuple((pair.photo, pair.label_map) for pair in splits.pairs[split])
    table = label_table(len(classes), data.ignore_label, data.reduce_zero_label)
    pairing = Pairing(pairs, splits.problems[split])
    return FolderSource(pairing, classes, table, file_ids(data, classes), data.label_orientation)


def find_splits(data: ConfigDict) -> Splits:
    """Find the photos of both splits in the folder `data.root`.

    Raises:
      DataError: see `find_layout` and `split_photos`.
    """
    ignored = {data.ignore_label, *({0} if data.reduce_zero_label else ())}
    return split_photos(find_layout(data_root(data)), SplitRules(data.validation_share, data.group, frozenset(ignored)))


def data_root(data: ConfigDict) -> Path:
    """The folder `config.data.root`; a `DataError` if it is empty."""
    if not data.root:
        raise DataError("config.data.root is empty: set --config.data.root=FOLDER, the folder of the data")
    return Path(data.root).expanduser()


def files_by_name(folder: Path, *endings: str) -> tuple[NamedFiles, str]:
    """Find the images below a folder whose paths end in the first of `endings` that any path has.

    Args:
      folder: is searched with its subfolders.
      endings: for instance "_leftImg8bit.png"; "" stands for any extension. Upper and lower case are the same.

    Returns:
      The files with their names, which are paths below the folder without the ending, and the ending.

    Raises:
      DataError: there is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; check config.data.root and config.data.source")
    paths = {path.relative_to(folder).as_posix(): path for path in list_photos(folder).paths}
    for ending in endings:
        found = {name: path for name, path in paths.items() if name.lower().endswith(ending.lower())}
        if found and ending:
            return [(name[: -len(ending)], path) for name, path in found.items()], ending
        if found:
            return [(name.rpartition(".")[0], path) for name, path in found.items()], ending
    raise DataError(f"{folder} holds no pictures called {' or '.join(f'*{ending}' for ending in endings)}")


def pair_files(photos: NamedFiles, label_maps: NamedFiles) -> Pairing:
    """Pair photos and label maps of the same name; Unicode may write a name in several forms, and any of them fits."""
    photo_of, label_map_of = dict(photos), dict(label_maps)
    composed = {unicodedata.normalize("NFC", name): name for name in photo_of.keys() - label_map_of.keys()}
    for name in label_map_of.keys() - photo_of.keys():
        same = composed.pop(unicodedata.normalize("NFC", name), None)
        if same is not None:
            label_map_of[same] = label_map_of.pop(name)
    problems = [f"{path} and {photo_of[name]} have the same name" for name, path in photos if path != photo_of[name]]
    problems += [f"{path} has no label map" for name, path in photo_of.items() if name not in label_map_of]
    problems += [f"{path} has no photo" for name, path in label_map_of.items() if name not in photo_of]
    names = sorted(photo_of.keys() & label_map_of.keys())
    return Pairing(tuple((photo_of[name], label_map_of[name]) for name in names), tuple(problems))


def file_version(path: Path) -> str:
    """Size in bytes and time of the last change in ns, which tell a file from later ones of the same name."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{status.st_size} {status.st_mtime_ns}"


def _fingerprint(pairs: tuple[tuple[Path, Path], ...]) -> str:
    """A hash of the files' paths below the folder that holds them all, so that it is the same on other machines."""
    if not pairs:
        return ""
    folder = os.path.commonpath([path.parent for pair in pairs for path in pair])
    names = "\n".join(os.path.relpath(path, folder) for pair in pairs for path in pair)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]
