"""Which labeled photos of a folder are for training, and which for validation."""

import dataclasses
import functools
from collections import Counter, defaultdict

import numpy as np

from fasseg_jax.data.classes import DataError, excerpt, read_table_text
from fasseg_jax.data.folder_layout import AmbiguousLayoutError, LabeledPhoto, Layout, LayoutError, Problem
from fasseg_jax.data.folder_words import place_of, split_of
from fasseg_jax.data.labels import count_labels, decode_labels, read_file
from fasseg_jax.data.samples import SPLITS
from fasseg_jax.data.splitting import AUTOMATIC, STRATIFIED, describe_division, divide
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["SplitRules", "Splits", "label_ids", "split_photos"]

LIST_FOLDERS = ("", "splits", "ImageSets", "ImageSets/Segmentation")  # and those of the photos


@dataclasses.dataclass(frozen=True)
class SplitRules:
    """What a person decides about a folder without splits.

    Attributes:
      share: `config.data.validation_share`.
      group: `config.data.group`.
      ignored: ids of label maps that are no class.
    """

    share: float = 0.2
    group: str = AUTOMATIC
    ignored: frozenset[int] = frozenset({255})


@dataclasses.dataclass(frozen=True)
class Splits:
    """The photos of each split.

    Attributes:
      pairs: split -> labeled photos, in the order of their names.
      problems: split -> files without a partner and the like, one line each.
      description: what was found and decided, in one line.
    """

    pairs: dict[str, tuple[LabeledPhoto, ...]]
    problems: dict[str, tuple[str, ...]]
    description: str


def split_photos(layout: Layout, rules: SplitRules) -> Splits:
    """Divide the photos of a folder.

    Folders that name splits decide. Without them lists decide, train.txt and val.txt: each line names a photo, and one
    list may stand for both. Otherwise, and for training photos if nothing is for validation, `divide` decides.

    Raises:
      LayoutError: no photo is for training or validation, or a folder of validation photos is empty.
      DataError: a list cannot be read.
    """
    problems = list(layout.problems)
    by_split: dict[str | None, list[LabeledPhoto]] = defaultdict(list)
    for pair in layout.pairs:
        by_split[pair.place.split].append(pair)
    said: list[str] = []
    named = {pair.place.split for pair in layout.pairs} | {problem.split for problem in problems}
    lists = {} if named & {*SPLITS} else _find_lists(layout)
    if named & {*SPLITS}:
        problems += [
            Problem("training", f"{pair.photo} lies in no folder of training or validation photos")
            for pair in by_split.pop(None, [])
        ]
    elif lists:
        by_split, problems, said = _by_lists(layout, lists)
        named = {*SPLITS}
        for split in SPLITS:
            if not by_split[split] and not any(problem.split == split for problem in problems):
                raise LayoutError(f"{layout.root}: {' and '.join(map(str, lists.values()))} leave no {split} photos")
    else:
        by_split["training"] = by_split.pop(None, [])
    if not by_split["training"] and not named & {*SPLITS}:
        raise LayoutError(f"{layout.root} holds no training photos with label maps")
    if by_split["training"] and not by_split["validation"] and "validation" not in named:
        _refuse_empty_folder(layout.root)
        photos = by_split["training"]
        chosen, line = _choose(layout.root, photos, rules)
        by_split["training"] = [pair for index, pair in enumerate(photos) if index not in chosen]
        by_split["validation"] = [pair for index, pair in enumerate(photos) if index in chosen]
        said.append(line)
    if tests := len(by_split["test"]):
        said.append(f"{tests} photos for tests are left out")
    said += [f"{left} are left out" for left in layout.left_out]
    return Splits(
        {split: tuple(by_split[split]) for split in SPLITS},
        {
            split: tuple(problem.line for problem in problems if (problem.split or "training") == split)
            for split in SPLITS
        },
        "; ".join([f"{layout.root}: {_places(layout, by_split)}", *said]),
    )


def _places(layout: Layout, by_split: dict[str | None, list[LabeledPhoto]]) -> str:
    """Where the photos of each split and their label maps lie."""
    places: dict[str, list[str]] = defaultdict(list)
    for split in SPLITS:
        folders = Counter(_folders(layout.root, pair) for pair in by_split[split])
        more = f" and {len(folders) - 2} more folders" if len(folders) > 2 else ""
        listing = " and ".join(text for text, _ in folders.most_common(2)) + more
        places[listing].append(f"{len(by_split[split])} {split}")
    return "; ".join(f"{' and '.join(counts)} photos {place}".rstrip() for place, counts in places.items())


def _folders(root: Path, pair: LabeledPhoto) -> str:
    """The folders of a photo and its label map, without those that are part of their names."""
    same = pair.label_map.stem == pair.photo.stem
    ending = pair.label_map.stem.removeprefix(pair.photo.stem) if not same else ""
    naming = f" (NAME{ending}{pair.label_map.suffix})" if ending and ending != pair.label_map.stem else ""
    folders = [root.name if folder == "." else folder for folder in (pair.place.folder, pair.label_folder)]
    return f"in {folders[0]}, label maps in {folders[1]}{naming}"


def _refuse_empty_folder(root: Path) -> None:
    """Raise a `LayoutError` if a folder is called "validation" or the like, but has no pictures."""
    for folder in sorted([*root.glob("*/"), *root.glob("*/*/")]):
        place = place_of(folder.relative_to(root) / "x")
        if place.split == "validation" and place.role != "label" and place.name == "x" and folder.is_dir():
            raise LayoutError(f"{folder} holds no pictures; add some, or remove it: then training photos are divided")


def _choose(root: Path, photos: list[LabeledPhoto], rules: SplitRules) -> tuple[frozenset[int], str]:
    """Which of the training photos are for validation, and a line about it."""
    if rules.share == 0 or len(photos) < 2:
        raise LayoutError(
            f"{root} has no validation photos, and "
            + ("config.data.validation_share is 0" if rules.share == 0 else "one photo cannot be divided")
        )
    names = [pair.place.name for pair in photos]
    if len(set(names)) < len(names):  # photos that differ only in the folders' words
        names = [pair.photo.relative_to(root).with_suffix("").as_posix() for pair in photos]
    classes = None
    if len(photos) <= STRATIFIED:
        ids = label_ids([pair.label_map for pair in photos])
        classes = [frozenset(str(number) for number in each - rules.ignored) for each in ids]
    division = divide(names, rules.share, rules.group, classes)
    if not division.validation:
        raise LayoutError(f"{root}: config.data.group = {rules.group!r} puts all photos into one group; change it")
    return division.validation, describe_division(
        division, f"config.data.validation_share = {rules.share:g}", f"config.data.group = {rules.group}"
    )


def label_ids(files: list[Path]) -> list[frozenset[int]]:
    """The ids that each label map holds; none if it cannot be read."""
    return [ids for _, ids in map_ahead(lambda file: _ids_of(file, _version(file)), files)]


@functools.lru_cache(maxsize=100_000)
def _ids_of(file: Path, version: tuple[int, int]) -> frozenset[int]:
    """The ids of a label map; several parts of a program ask for them."""
    try:
        return frozenset(np.flatnonzero(count_labels(decode_labels(read_file(file), str(file)))).tolist())
    except DataError:  # it is named when the sample is read
        return frozenset()


def _version(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
        return status.st_size, status.st_mtime_ns
    except OSError:
        return 0, 0


def _find_lists(layout: Layout) -> dict[str, Path]:
    """The lists of training, validation and test photos, by split."""
    folders = [layout.root / name for name in LIST_FOLDERS]
    folders += sorted({pair.photo.parent for pair in layout.pairs})[:10]
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
            split = split_of(file.stem)
            if split is None:
                continue
            if split in found and found[split] != file:
                raise AmbiguousLayoutError(
                    f"two lists may name the {split} photos, {found[split]} and {file}; remove one"
                )
            found[split] = file
    return found if found.keys() & {*SPLITS} else {}


def _by_lists(
    layout: Layout, lists: dict[str, Path]
) -> tuple[dict[str | None, list[LabeledPhoto]], list[Problem], list[str]]:
    """Divide by lists; photos that none names are left out, or are the other split if there is but one list."""
    by_stem: dict[str, list[LabeledPhoto]] = defaultdict(list)
    for pair in layout.pairs:
        for name in {pair.photo.stem, pair.place.name.rpartition("/")[2]}:
            by_stem[name].append(pair)
    split_by: dict[Path, str] = {}
    problems: list[Problem] = []
    for split, file in lists.items():
        for number, line in enumerate(read_table_text(file).splitlines(), start=1):
            if not (entry := line.strip()):
                continue
            where = f"{file}, line {number}"
            listed = _listed(entry, by_stem)
            if listed is None and split == "test":
                continue  # photos for tests often have no label maps
            if listed is None:
                problems.append(Problem(split, f"{where}: names {excerpt(entry)}, but no labeled photo is called so"))
            elif split_by.setdefault(listed.photo, split) != split:
                problems.append(Problem(split, f"{where}: names {excerpt(entry)}, which is in the other list too"))
    found: dict[str | None, list[LabeledPhoto]] = defaultdict(list)
    given = [split for split in SPLITS if split in lists]
    rest = next(split for split in SPLITS if split not in lists) if len(given) == 1 else None
    for pair in layout.pairs:
        found[split_by.get(pair.photo, rest)].append(pair)
    unlisted = len(found.pop(None, []))
    files = [lists[split].relative_to(layout.root).as_posix() for split in given]
    said = [f"splits are those of {' and '.join(files)}"]
    problems += [problem for problem in layout.problems if rest or not problem.alone]
    if rest:
        said.append(f"all other photos are for {rest}")
    elif unlisted:
        said.append(f"{unlisted} labeled photos are in no list and left out")
    return found, problems, said


def _listed(entry: str, by_stem: dict[str, list[LabeledPhoto]]) -> LabeledPhoto | None:
    """The photo that a line of a list names: a name, or a path, perhaps followed by that of the label map."""
    for text in (entry, entry.split()[0]):
        path = Path(text.replace("\\", "/"))
        for stem in (path.name, path.stem):
            candidates = by_stem.get(stem, [])
            if len(candidates) == 1:
                return candidates[0]
            fitting = [pair for pair in candidates if _ends_with(pair.photo, path)]
            if len(fitting) == 1:
                return fitting[0]
    return None


def _ends_with(photo: Path, path: Path) -> bool:
    parts = [*path.parts[:-1], path.stem]
    return [*photo.parts[:-1], photo.stem][-len(parts) :] in (parts, [*path.parts[:-1], path.name])
