"""Data sets in folders of image files: one's own, ADE20K, Cityscapes."""

import csv
import dataclasses

import numpy as np

from fasseg_jax.data.classes import TABLES, ClassTable, DataError, load_classes
from fasseg_jax.data.images import list_photos
from fasseg_jax.data.labels import UNKNOWN, decode_labels, decode_sample, label_table, map_labels
from fasseg_jax.data.samples import Sample
from fasseg_jax.runtime.files import Path

__all__ = [
    "FolderSource",
    "Pairing",
    "cityscapes_label_ids",
    "file_version",
    "folder_classes",
    "pair_cityscapes",
    "pair_folder",
]

SPLITS = {"training": "train", "validation": "val"}  # as Cityscapes calls them


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

    def __init__(self, pairing: Pairing, classes: ClassTable, table: np.ndarray):
        """`table` gives the training id of each id in the label maps, as `label_table` does."""
        self.classes = classes
        self.problems = pairing.problems
        self._pairs = pairing.pairs
        self._table = table

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Sample:
        return decode_sample(*self.read(index))

    def version(self, index: int) -> str:
        """Names, sizes and times of both files."""
        return " ".join(f"{path} {file_version(path)}" for path in self._pairs[index])

    def read(self, index: int) -> tuple[bytes, np.ndarray, str, str]:
        """Content of the photo's file, the labels as training ids, and the names of both files."""
        photo, label_map = self._pairs[index]
        labels = map_labels(decode_labels(_read(label_map), str(label_map)), self._table, str(label_map))
        return _read(photo), labels, str(photo), str(label_map)


def pair_folder(root: Path, split: str) -> Pairing:
    """Pair the files of one's own folder, or of ADE20K (the folder `ADEChallengeData2016`).

    images/SPLIT/NAME.jpg (or .png and whatever else Pillow reads) belongs to annotations/SPLIT/NAME.png; there may be
    subfolders. SPLIT is "training" or "validation".

    Raises:
      DataError: a folder is missing, or holds no such files.
    """
    photos, _ = _by_name(root / "images" / split, "")
    label_maps, _ = _by_name(root / "annotations" / split, ".png")
    return _pair(photos, label_maps)


def pair_cityscapes(root: Path, split: str, num_classes: int, ignore_label: int) -> tuple[Pairing, np.ndarray]:
    """Pair the files of Cityscapes, and choose its label table.

    leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png belongs to gtFine/{train,val}/CITY/NAME_gtFine_labelTrainIds.png
    where there are any such files (the Cityscapes scripts make them), else to NAME_gtFine_labelIds.png, whose ids are
    mapped by the column `label_id` of the class table "cityscapes".

    Returns:
      the pairing and the label table.

    Raises:
      DataError: a folder is missing, or holds no such files.
    """
    photos, _ = _by_name(root / "leftImg8bit" / SPLITS[split], "_leftImg8bit.png")
    train_ids, label_ids = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
    label_maps, ending = _by_name(root / "gtFine" / SPLITS[split], train_ids, label_ids)
    table = label_table(num_classes, ignore_label)
    if ending == label_ids:
        table = _label_id_table(ignore_label)
    return _pair(photos, label_maps), table


def folder_classes(root: Path) -> ClassTable:
    """The classes of one's own data: `classes.csv` (see `load_classes`) or `classes.txt` in its folder.

    Each line of `classes.txt` is "id name R G B", the ids from 0 without gaps (after `reduce_zero_label`); the name may
    hold spaces, the colours are 0 to 255.

    Raises:
      DataError: neither file is there, or it is wrong; the message names the line.
    """
    if (root / "classes.csv").is_file():
        return load_classes(str(root / "classes.csv"))
    file = root / "classes.txt"
    if not file.is_file():
        raise DataError(
            f"{root} has no classes.csv or classes.txt; write one of a line 'id name R G B' for each class, "
            "or set config.data.dataset to a class table"
        )
    names, palette = [], []
    for number, line in enumerate(file.read_text("utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        head, *name, red, green, blue = line.split() if len(line.split()) >= 5 else ["", "", "", "", ""]
        colour = [int(text) for text in (red, green, blue) if text.isdecimal() and int(text) <= 255]
        if head != str(len(names)) or len(colour) != 3:
            raise DataError(f"{file}, line {number}: expected '{len(names)} NAME R G B' (0 to 255), got {line!r}")
        names.append(" ".join(name))
        palette.append(colour)
    if not names:
        raise DataError(f"{file}: holds no classes")
    return ClassTable(tuple(names), np.array(palette, np.uint8))


def file_version(path: Path) -> str:
    """Size in bytes and time of the last change in ns, which tell a file from a later one of its name."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{status.st_size} {status.st_mtime_ns}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _by_name(folder: Path, *endings: str) -> tuple[list[tuple[str, Path]], str]:
    """The pictures below a folder that have the first of the endings that any has, by name, and that ending.

    A name is the path below the folder without ending and extension.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; check config.data.root and config.data.source")
    names = {path: path.relative_to(folder).as_posix() for path in list_photos(folder).paths}
    for ending in endings:
        found = [(name, path) for path, name in names.items() if name.lower().endswith(ending.lower())]
        if found:
            cut = len(ending)
            return [(name[:-cut] if cut else name.rpartition(".")[0], path) for name, path in found], ending
    raise DataError(f"{folder} holds no pictures called {' or '.join(f'*{ending}' for ending in endings)}")


def _pair(photos: list[tuple[str, Path]], label_maps: list[tuple[str, Path]]) -> Pairing:
    photo_of, label_map_of = dict(photos), dict(label_maps)
    problems = [f"{path} and {photo_of[name]} have the same name" for name, path in photos if path != photo_of[name]]
    problems += [f"{path} has no label map" for name, path in photo_of.items() if name not in label_map_of]
    problems += [f"{path} has no photo" for name, path in label_map_of.items() if name not in photo_of]
    names = sorted(photo_of.keys() & label_map_of.keys())
    return Pairing(tuple((photo_of[name], label_map_of[name]) for name in names), tuple(problems))


def cityscapes_label_ids() -> list[int]:
    """The label id, of Cityscapes' 34, of each of the 19 classes."""
    with (TABLES / "cityscapes.csv").open(newline="", encoding="utf-8") as lines:
        return [int(row["label_id"]) for row in csv.DictReader(lines)]


def _label_id_table(ignore_label: int) -> np.ndarray:
    """The training ids of Cityscapes' 34 label ids, and of 255, which stands for the -1 of licence plates."""
    label_ids = cityscapes_label_ids()
    table = np.full(65536, UNKNOWN, np.int32)
    table[[*range(34), 255]] = ignore_label
    table[label_ids] = np.arange(len(label_ids))
    return table
