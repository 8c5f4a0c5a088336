"""Divides photos into training and validation where nobody has."""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

__all__ = ["AUTOMATIC", "EACH", "STRATIFIED", "Division", "describe_division", "divide"]

STRATIFIED = 1000  # photos, of at most so many the classes are looked at: reading more label maps takes long
FRAMES = 10  # photos whose names differ only in the last number are a film from so many on
AUTOMATIC, EACH = "auto", "none"  # values of `config.data.group` that are no regular expressions
NUMBERED = re.compile(r"(.*?)\d+", re.DOTALL)
# What cameras and scanners write before a number: such photos are no film.
CAMERA = re.compile(
    r"(img|image|imag|photo|picture|pic|dsc|dscn|dscf|pxl|cimg|sam|scan|page|p|sample|example|tile|patch)?[_\s.-]*",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Division:
    """Which photos are for validation.

    Attributes:
      validation: their indices.
      films: number of the films, or groups, that were kept together.
      moved: number of photos that changed sides so that each class is on both.
      divided: number of the films that were not kept together, because a class or most photos would have been on one
        side.
      one_sided: classes of several photos that are on one side all the same.
    """

    validation: frozenset[int]
    films: int = 0
    moved: int = 0
    divided: int = 0
    one_sided: tuple[str, ...] = ()


def divide(
    names: Sequence[str],
    share: float,
    group: str = AUTOMATIC,
    classes: Sequence[frozenset[str]] | None = None,
    decided: Mapping[int, bool] | None = None,
) -> Division:
    """Choose photos for validation by a hash of their names.

    A photo, or a film, is for validation if its hash, a number from 0 to 1, is below `share`. So more photos do not
    move those that are there. There are two exceptions. Of few photos by chance less than half or more than twice the
    share may be chosen; then those with the next hashes are added or taken away. And the fewest photos or films change
    sides so that each class that can be is on both.

    Args:
      names: of the photos, without extensions, all different.
      share: of the photos, 0 to 0.9; the hash meets it on average.
      group: which photos stay together. "auto": films, which are at least 10 photos whose names differ only in the last
        number, unless the name before it is one that cameras give, or the film has a class to itself, or most photos
        are of films with more than twice the share. "none": each photo is by itself. Otherwise a regular expression:
        photos whose names begin with the same match.
      classes: of each photo; None if they are not known.
      decided: index -> whether the photo is for validation, of those that must stay where they are. Photos of their
        groups go with them.

    Returns:
      At least one photo for validation if there are two groups, and never all; none if `share` is 0.
    """
    if share <= 0 or len(names) < 2:
        return Division(frozenset())
    keys, films, divided = _groups(names, group, classes, share)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    fixed = {keys[index]: chosen for index, chosen in (decided or {}).items()}
    order = sorted(members, key=lambda key: (_hash(key), key))
    if len(order) == 1:
        return Division(frozenset(), films, 0, divided)

    wanted = share * len(names)
    free = [key for key in order if key not in fixed and (len(members[key]) <= 2 * wanted or films == 0)]
    chosen = {key for key in order if fixed.get(key, False)} | {key for key in free if _hash(key) < share}
    size = sum(len(members[key]) for key in chosen)
    for key in free:
        if (chosen and size >= wanted / 2) or len(chosen) + 1 >= len(order):
            break
        if key not in chosen:
            chosen.add(key)
            size += len(members[key])
    for key in reversed(free):
        if key in chosen and len(chosen) > 1 and (size > 2 * wanted or len(chosen) == len(order)):
            chosen.remove(key)
            size -= len(members[key])
    if not chosen:  # groups that a person named, all of them large
        chosen = {min(order, key=lambda key: (len(members[key]), _hash(key)))} - fixed.keys()
    before = set(chosen)
    one_sided: tuple[str, ...] = ()
    if classes is not None:
        held = {key: frozenset().union(*(classes[index] for index in members[key])) for key in order}
        one_sided = _put_on_both_sides(order, held, chosen, fixed.keys())
        numbers = Counter(name for each in classes for name in each)
        one_sided = tuple(name for name in one_sided if numbers[name] > 1)
    moved = sum(len(members[key]) for key in before ^ chosen)
    return Division(frozenset(index for key in chosen for index in members[key]), films, moved, divided, one_sided)


def describe_division(division: Division, share: str, group: str) -> str:
    """A line about a division; `share` and `group` are the options that decide it, as a person writes them."""
    parts = [f"divided by a hash of the names ({share})"]
    if division.films:
        parts.append(f"with {_number(division.films, 'film')} kept together ({group})")
    if division.divided:
        parts.append(f"but not {_number(division.divided, 'film')} with a class or most photos to itself ({group})")
    if division.moved:
        parts.append(f"and {_number(division.moved, 'photo')} moved, so that training and validation have each class")
    if division.one_sided:
        some = ", ".join(division.one_sided[:8]) + ", ..." * (len(division.one_sided) > 8)
        parts.append(f"but one of both lacks the classes {some}, as their photos belong together")
    return ", ".join(parts)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _groups(
    names: Sequence[str], group: str, classes: Sequence[frozenset[str]] | None, share: float
) -> tuple[list[str], int, int]:
    """The key of each photo's group, the number of films that stay together, and of those that do not."""
    if group == EACH:
        return list(names), 0, 0
    if group != AUTOMATIC:
        pattern = re.compile(group)
        keys = [f"{match[0]}\0" if (match := pattern.match(name)) else name for name in names]
        return keys, len({key for key in keys if key.endswith("\0")}), 0
    films = [_film(name) for name in names]
    frames = Counter(films)
    found = {film for film, number in frames.items() if film and number >= FRAMES}
    total = Counter(name for each in classes or () for name in each)
    kept = set()
    for film in found:
        inside: Counter[str] = Counter()
        if classes is not None:
            inside.update(name for its, each in zip(films, classes, strict=True) if its == film for name in each)
        if not any(1 < number == total[name] for name, number in inside.items()):
            kept.add(film)
    large = {film for film in kept if frames[film] > 2 * share * len(names)}
    if len(names) - sum(frames[film] for film in large) < share * len(names):
        kept -= large
    keys = [film if film in kept else name for name, film in zip(names, films, strict=True)]
    return keys, len(kept), len(found) - len(kept)


def _film(name: str) -> str:
    """What the names of all frames of a film have before their number, and NUL; empty if the photo is of none."""
    match = NUMBERED.fullmatch(name)
    if match is None or CAMERA.fullmatch(match[1].rpartition("/")[2]):
        return ""
    return f"{match[1]}\0"


def _put_on_both_sides(
    order: list[str], held: dict[str, frozenset[str]], chosen: set[str], fixed: Collection[str]
) -> tuple[str, ...]:
    """Move groups into `chosen` or out of it, until each class that can be is on both sides; returns the others.

    Args:
      order: all groups, by their hash.
      held: the classes of each group.
      chosen: the groups for validation; is changed.
      fixed: groups that must stay where they are.
    """
    groups_of: dict[str, list[str]] = {}
    for key in order:
        for name in held[key]:
            groups_of.setdefault(name, []).append(key)
    one_sided = []
    for name in sorted(groups_of, key=lambda name: (len(groups_of[name]), name)):  # the rarest first
        groups = groups_of[name]
        inside = [key for key in groups if key in chosen]
        if 0 < len(inside) < len(groups):
            continue
        into = not inside
        # The nearest to the border first. No class may lose its last group on the side that the group leaves.
        for key in groups if into else reversed(groups):
            left = [[each for each in groups_of[other] if (each in chosen) != into] for other in held[key]]
            if key not in fixed and len(groups) > 1 and all(len(each) > 1 for each in left):
                (chosen.add if into else chosen.remove)(key)
                break
        else:
            one_sided.append(name)
    return tuple(sorted(one_sided))


def _hash(key: str) -> float:
    """A number in [0, 1) that only depends on the key."""
    digest = hashlib.sha256(key.removesuffix("\0").encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
