"""What an import will write: classes, splits, and the names of files."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from fasseg_jax.data.classes import ClassTable, DataError
from fasseg_jax.data.images import output_names
from fasseg_jax.data.palette import choose_colors
from fasseg_jax.data.splitting import AUTOMATIC, STRATIFIED, Division, describe_division, divide
from fasseg_jax.importing.annotations import Annotations, ImportOptions, Item, clean_name
from fasseg_jax.runtime.files import Path
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = ["Target", "final_classes", "plan_targets"]

BACKGROUND = ("background", "_background_", "__background__")


@dataclasses.dataclass(frozen=True)
class Target:
    """An item with its split and the path of its files below `images/SPLIT`, without extension."""

    item: Item
    split: str
    name: Path

    @property
    def key(self) -> str:
        """Names the sample."""
        return f"{self.split}/{self.name.as_posix()}"


def final_classes(annotations: Annotations, options: ImportOptions, unlabeled: str) -> tuple[ClassTable, int | None]:
    """Choose the classes.

    Args:
      annotations: its classes are taken, unless the options name some.
      options: the person's.
      unlabeled: "background" adds a class of this name, if there is none and shapes may leave pixels uncovered.

    Returns:
      The classes, and the id of pixels that no shape covers; None if they are ignored.

    Raises:
      DataError: there are no classes.
    """
    given = options.classes is not None
    names = options.classes if options.classes is not None else annotations.classes
    colors = options.colors if given else annotations.colors
    repeated = [name for name, count in Counter(map(clean_name, names)).items() if count > 1]
    if repeated or not all(map(clean_name, names)):
        raise DataError(
            f"the class name {repeated[0] if repeated else ''!r} is {'there twice' if repeated else 'empty'}; "
            "give names by --classes=FILE, one a line"
        )
    names = tuple(map(clean_name, names))
    from_shapes = any(isinstance(item.labels, tuple) for item in annotations.items)
    background = None
    if unlabeled == "background" and from_shapes:
        known = [index for index, name in enumerate(names) if name.lower() in BACKGROUND]
        background = known[0] if known else 0
        if not known:
            background = len(names) if given else 0  # ids that a person gave stay
            names = (*names, "background") if given else ("background", *names)
            colors = None if colors is None else np.insert(colors, background, _unused_black(colors), axis=0)
    if not names:
        raise DataError("no shape has a class; annotate some, or name classes by --classes=FILE, one a line")
    palette = choose_colors(names) if colors is None else colors
    return ClassTable(names, np.asarray(palette, np.uint8)), background


def _unused_black(colors: np.ndarray) -> np.ndarray:
    """Black, or the first gray that is no color yet, as (1, 3)."""
    taken = {tuple(color) for color in colors.tolist()}
    gray = next(level for level in range(256) if (level,) * 3 not in taken)
    return np.full((1, 3), gray, np.uint8)


def plan_targets(
    items: Sequence[Item],
    validation: float,
    group: str = AUTOMATIC,
    classes: Sequence[str] = (),
    earlier: Iterable[str] = (),
) -> tuple[list[Target], list[str], list[str]]:
    """Choose the split and the name of each item.

    Args:
      items: from a reader.
      validation: share for validation of the items without a split; see `divide`.
      group: which of them stay together; see `divide`.
      classes: names of the indices in label maps.
      earlier: keys of the targets of an earlier import into the same folder, which stay where they are.

    Returns:
      The items to import, in order; problems; and notes about the splits.
    """
    items, problems = _one_per_photo(items)
    tests = [item for item in items if item.split == "test"]
    notes = [f'{len(tests)} photos of the split "test" are left out'] if tests else []
    items = [item for item in items if item.split != "test"]
    given = any(item.split == "validation" for item in items)
    free = [item for item in items if item.split is None or not given]
    division, kept = _divide(free, validation, group, classes, earlier)
    chosen = {id(free[index]) for index in division.validation}
    if free and validation > 0:
        notes.append(describe_division(division, f"--validation={validation:g}", f"--group={group}"))
    if kept:
        notes.append(f"{kept} photos stay in the split of the earlier import")
    splits = ["validation" if id(item) in chosen else item.split or "training" for item in items]
    targets = []
    for split in ("training", "validation"):
        of_split = [item for item, its in zip(items, splits, strict=True) if its == split]
        names = output_names([Path(_safe(item.name)) for item in of_split])
        targets += [Target(item, split, name) for item, name in zip(of_split, names, strict=True)]
    counts = Counter(target.key.casefold() for target in targets)
    for target in targets:
        if counts[target.key.casefold()] > 1:
            problems.append(f"{target.item.origin}: another photo has the same name {target.item.name!r}; rename one")
    return [target for target in targets if counts[target.key.casefold()] == 1], problems, notes


def _one_per_photo(items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """The items whose photo no other item has, and a line about each of the rest."""
    by_photo: dict[object, list[Item]] = defaultdict(list)
    for item in items:
        by_photo[_photo_key(item)].append(item)
    problems = [
        f"{photo}: {len(group)} annotations are for this photo ({', '.join(item.origin for item in group[:3])}); "
        "remove all but one"
        for photo, group in by_photo.items()
        if len(group) > 1
    ]
    return [item for item in items if len(by_photo[_photo_key(item)]) == 1], problems


def _photo_key(item: Item) -> object:
    """Tells photos apart: their files, or the items themselves if they hold the bytes."""
    return item.photo.resolve() if isinstance(item.photo, Path) else id(item)


def _divide(
    items: list[Item], share: float, group: str, classes: Sequence[str], earlier: Iterable[str]
) -> tuple[Division, int]:
    """Choose items for validation; also returns the number of those that an earlier import has decided."""
    names = [item.name.rpartition(".")[0] for item in items]
    split_of_name = {name: split for split, _, name in (key.partition("/") for key in earlier)}
    written = [Path(_safe(item.name)).with_suffix("").as_posix() for item in items]
    decided = {
        index: split_of_name[name] == "validation" for index, name in enumerate(written) if name in split_of_name
    }
    held = None
    if len(items) <= STRATIFIED and len(decided) < len(items):
        held = [found for _, found in map_ahead(lambda item: _classes_of(item, classes), items)]
    return divide(names, share, group, held, decided), len(decided)


def _classes_of(item: Item, classes: Sequence[str]) -> frozenset[str]:
    """The classes that an item holds; none if its labels cannot be read."""
    if isinstance(item.labels, tuple):
        return frozenset(shape.label for shape in item.labels if shape.label is not None and shape.kind != "dropped")
    try:
        values, _ = item.labels()
    except DataError:  # it is reported when the item is written
        return frozenset()
    return frozenset(classes[index] if index < len(classes) else str(index) for index in np.unique(values[values >= 0]))


def _safe(name: str) -> str:
    """A path that stays below its folder, and that a search of folders finds."""
    parts = [part.replace("\0", "_") for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(f"_{part}" if part.startswith(".") else part for part in parts) or "photo"
