"""Data sets in folders of image files: your own, or ADE20K."""

import dataclasses
import unicodedata

import numpy as np
from ml_collections import ConfigDict

from fasseg_jax.data.classes import (
    ClassTable,
    DataError,
    check_class_name,
    excerpt,
    is_number,
    load_classes,
    read_table_text,
)
from fasseg_jax.data.images import list_photos
from fasseg_jax.data.labels import (
    LABEL_EXTENSIONS,
    LABEL_ORIENTATIONS,
    decode_labels,
    decode_sample,
    file_ids,
    label_table,
    map_labels,
)
from fasseg_jax.data.samples import Sample
from fasseg_jax.runtime.files import Path, file_state, make_path, require_regular_file

__all__ = [
    "FolderSource",
    "Pairing",
    "data_root",
    "file_version",
    "files_by_name",
    "folder_classes",
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
        ids = decode_labels(_read(label_map), str(label_map), stored=self.label_orientation == "stored")
        labels = map_labels(ids, self._table, str(label_map))
        return _read(photo), labels, str(photo), str(label_map)


def open_folder(data: ConfigDict, split: str, classes: ClassTable) -> FolderSource:
    """Open a split of your own folder, or of ADE20K (the folder `ADEChallengeData2016`).

    images/SPLIT/NAME.jpg (or .png, or any other format that Pillow reads) belongs to annotations/SPLIT/NAME.png (or
    .tif, .bmp, .gif). Both folders may have subfolders.

    Args:
      data: `config.data`.
      split: "training" or "validation".
      classes: of the data.

    Raises:
      DataError: a folder is missing or holds no such files, or `data.ignore_label` is the id of a class.
    """
    root = data_root(data)
    photos, _ = files_by_name(root / "images" / split, "")
    label_maps = _label_maps(root / "annotations" / split)
    table = label_table(len(classes), data.ignore_label, data.reduce_zero_label)
    return FolderSource(pair_files(photos, label_maps), classes, table, file_ids(data, classes), data.label_orientation)


def _label_maps(folder: Path) -> NamedFiles:
    """The label maps of a folder; where several have the same name, only the one of the preferred extension."""
    files, _ = files_by_name(folder, "")
    names: dict[str, dict[str, Path]] = {}
    for name, path in files:
        names.setdefault(name, {})[path.suffix.lower()] = path
    found = [
        (name, paths[min(known, key=LABEL_EXTENSIONS.index)])
        for name, paths in names.items()
        if (known := paths.keys() & set(LABEL_EXTENSIONS))
    ]
    if not found:
        raise DataError(f"{folder} holds no label maps called *.png, *.tif, *.bmp or *.gif")
    return found


def data_root(data: ConfigDict) -> Path:
    """The folder `config.data.root`; a `DataError` if it is empty."""
    if not data.root:
        raise DataError("config.data.root is empty: set --config.data.root=FOLDER, the folder of the data")
    return make_path(data.root).expanduser()


def folder_classes(root: Path) -> ClassTable:
    """Read the classes of your own data: `classes.csv` (see `load_classes`) or `classes.txt` in its folder.

    Each line of `classes.txt` is "id name R G B". Ids run from 0 without gaps (after `reduce_zero_label`), the name may
    hold spaces, and colors are 0 to 255.

    Raises:
      DataError: neither file is there, or a line is wrong; the message names it.
    """
    if (root / "classes.csv").exists():
        return load_classes(str(root / "classes.csv"))
    file = root / "classes.txt"
    if not file.exists():
        raise DataError(
            f"{root} has no classes.csv or classes.txt: write classes.txt, with a line 'id name R G B' for each class, "
            "or set config.data.dataset to a class table"
        )
    names: list[str] = []
    palette: list[list[int]] = []
    for number, line in enumerate(read_table_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        class_id, *name, red, green, blue = line.split() if len(line.split()) >= 5 else ["", "", "", "", ""]
        color = [int(text) for text in (red, green, blue) if is_number(text, largest=255)]
        if class_id != str(len(names)) or len(color) != 3:
            expected = f"'{len(names)} NAME R G B' (0 to 255)"
            raise DataError(f"{file}, line {number}: expected {expected}, got {excerpt(line)}")
        names.append(" ".join(name))
        check_class_name(names[-1], f"{file}, line {number}")
        palette.append(color)
    if not names:
        raise DataError(f"{file}: holds no classes")
    return ClassTable(tuple(names), np.array(palette, np.uint8))


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
        return file_state(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _read(path: Path) -> bytes:
    try:
        require_regular_file(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
