"""Finds photos and their label maps in a folder, however people have laid them out."""

import dataclasses
import unicodedata
from collections import Counter, defaultdict

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.folder_words import LABEL_ENDING, PHOTO_ENDING, PICTURE_ENDING, Place, place_of
from fasseg_jax.data.images import list_photos
from fasseg_jax.data.labels import LABEL_EXTENSIONS
from fasseg_jax.runtime.files import Path

__all__ = ["AmbiguousLayoutError", "LabeledPhoto", "Layout", "LayoutError", "Problem", "find_layout"]

JPEG = (".jpg", ".jpeg")  # a label map may be called so, but is refused when it is read


class LayoutError(DataError):
    """A folder holds no photos with label maps that can be found."""


class AmbiguousLayoutError(LayoutError):
    """A folder may be understood in two ways."""


@dataclasses.dataclass(frozen=True)
class LabeledPhoto:
    """A photo with its label map.

    Attributes:
      photo, label_map: the files.
      place: what the photo's path says; its split is that of the label map, if only that names one.
      label_folder: the folders that make the label map's file one; see `Place.folder`.
    """

    photo: Path
    label_map: Path
    place: Place
    label_folder: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """A line about a file without a partner or with two.

    Attributes:
      split: what the path names.
      line: says what is wrong.
      alone: whether the file has no partner.
    """

    split: str | None
    line: str
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
      root: the folder.
      pairs: photos with their label maps, in the order of their names; those of a split "test" too.
      problems: files without a partner or with two.
      left_out: what is in the folder besides, in a few words each.
    """

    root: Path
    pairs: tuple[LabeledPhoto, ...]
    problems: tuple[Problem, ...]
    left_out: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _File:
    path: Path
    place: Place


def find_layout(root: Path) -> Layout:
    """Find the photos and label maps below a folder.

    Label maps lie in folders called annotations, masks, labels or the like, photos in folders called images or the like
    or in any others. Folders train, val, ... may be above or below these, or part of their names. Without a folder of
    label maps, files whose names end in _mask, _label or the like are the label maps. A label map has its photo's name,
    and perhaps such an ending.

    Args:
      root: is searched with its subfolders, but for hidden ones.

    Raises:
      LayoutError: there is no such folder, nothing that fits, or two folders that may be meant.
    """
    if not root.is_dir():
        raise LayoutError(f"there is no folder {root}; check config.data.root")
    files = [_File(path, place_of(path.relative_to(root))) for path in list_photos(root).paths]
    labels = [file for file in files if file.place.role == "label"]
    photos = [file for file in files if file.place.role == "photo"]
    others = [file for file in files if file.place.role is None]
    if not photos:
        photos, others = others, []
    if not labels:
        photos, labels = _side_by_side(photos)
    labels, useless = _without_previews(labels)
    _refuse_two_folders(root, "label maps", labels)
    _refuse_two_folders(root, "photos", photos)
    pairs, problems, pictures = _pair(photos, labels)
    if not pairs and not problems:
        raise LayoutError(f"{root} holds no photos with label maps")
    if not pairs and photos and labels:
        raise LayoutError(
            f"{root}: no label map has the name of a photo; for example {photos[0].path} and {labels[0].path}"
        )
    if not pairs:
        files, what, partner = (photos, "photo", "label map") if photos else (labels, "label map", "photo")
        number = f"{len(files)} {what}{'s' * (len(files) > 1)}"
        raise LayoutError(f"{root} holds {number}, such as {files[0].path}, but no {partner}s")
    order = sorted(pairs, key=lambda pair: (pair.place.name, str(pair.photo)))
    return Layout(root, tuple(order), tuple(problems), tuple(_counts(root, [*others, *useless, *pictures])))


def _side_by_side(files: list[_File]) -> tuple[list[_File], list[_File]]:
    """Photos and label maps of the same folders: files with an ending of label maps, if there is one with its photo."""
    photos = {PHOTO_ENDING.sub("", file.place.name) for file in files}
    ending = [file for file in files if LABEL_ENDING.search(file.place.name)]
    if not any(LABEL_ENDING.sub("", file.place.name) in photos for file in ending):
        return files, []
    chosen = {file.path for file in ending}
    return [file for file in files if file.path not in chosen], ending


def _without_previews(labels: list[_File]) -> tuple[list[_File], list[_File]]:
    """The files that can be label maps, and the others: other extensions, and JPEGs beside a file of the same name."""
    lossless = {
        file.path.with_suffix("")
        for file in labels
        if file.path.suffix.lower() in LABEL_EXTENSIONS and file.path.suffix.lower() not in JPEG
    }
    useful: list[_File] = []
    useless: list[_File] = []
    for file in labels:
        suffix = file.path.suffix.lower()
        fits = suffix in LABEL_EXTENSIONS and not (suffix in JPEG and file.path.with_suffix("") in lossless)
        (useful if fits else useless).append(file)
    return useful, useless


def _refuse_two_folders(root: Path, what: str, files: list[_File]) -> None:
    """Raise a `LayoutError` if two folders hold files for the same photo."""
    folders: dict[tuple[str | None, str], str] = {}
    for file in files:
        key = file.place.split, _bare(file, what == "label maps")
        first = folders.setdefault(key, file.place.folder)
        if first != file.place.folder:
            numbers = Counter(each.place.folder for each in files)
            listing = " and ".join(f"{folder} ({numbers[folder]} files)" for folder in (first, file.place.folder))
            raise AmbiguousLayoutError(
                f"{root}: two folders may hold the {what}, {listing}: move one of them elsewhere, or let its name "
                "begin with a dot"
            )


def _pair(photos: list[_File], labels: list[_File]) -> tuple[list[LabeledPhoto], list[Problem], list[_File]]:
    """Pair files of the same name and split, then of names that Unicode writes otherwise, then of names with endings.

    Returns:
      The pairs, the problems, and the pictures of labels that lie beside label maps.
    """
    pairs: list[LabeledPhoto] = []
    problems: list[Problem] = []
    for name_of in (_exact, _composed, _bare):
        for across in (False, True):  # the second time, files of a split and those of none
            found: dict[tuple[str | None, str], tuple[list[_File], list[_File]]] = defaultdict(lambda: ([], []))
            for file in photos:
                found[None if across else file.place.split, name_of(file, False)][0].append(file)
            for file in labels:
                found[None if across else file.place.split, name_of(file, True)][1].append(file)
            done: set[Path] = set()
            for of_photo, of_label in found.values():
                splits = [{file.place.split for file in files} for files in (of_photo, of_label)]
                if not of_photo or not of_label or (across and {None} not in splits):
                    continue
                if len(of_photo) == len(of_label) == 1:
                    pairs.append(_labeled(of_photo[0], of_label[0]))
                else:
                    problems.append(_too_many(of_photo, of_label))
                done.update(file.path for file in (*of_photo, *of_label))
            photos = [file for file in photos if file.path not in done]
            labels = [file for file in labels if file.path not in done]
    problems += [Problem(file.place.split, f"{file.path} has no label map", alone=True) for file in photos]
    paired = {(pair.place.split, _bare(_File(pair.photo, pair.place), False)): pair for pair in pairs}
    pictures = []
    for file in labels:
        own: set[str | None] = {file.place.split} if file.place.split else {None, "training", "validation", "test"}
        picture = PICTURE_ENDING.sub("", file.place.name)
        if any((split, picture) in paired for split in own) and picture != file.place.name:
            pictures.append(file)
        elif rivals := [pair for split in own if (pair := paired.get((split, _bare(file, True))))]:
            line = _two_label_maps(rivals[0].photo, rivals[0].label_map, file.path)
            problems.append(Problem(rivals[0].place.split, line))
        else:
            problems.append(Problem(file.place.split, f"{file.path} has no photo", alone=True))
    return pairs, problems, pictures


def _labeled(photo: _File, label_map: _File) -> LabeledPhoto:
    place = dataclasses.replace(photo.place, split=photo.place.split or label_map.place.split)
    return LabeledPhoto(photo.path, label_map.path, place, label_map.place.folder)


def _too_many(photos: list[_File], labels: list[_File]) -> Problem:
    if len(photos) > 1:
        return Problem(photos[0].place.split, f"{photos[0].path} and {photos[1].path} have the same name; rename one")
    return Problem(photos[0].place.split, _two_label_maps(photos[0].path, labels[0].path, labels[1].path))


def _two_label_maps(photo: Path, *label_maps: Path) -> str:
    return f"{photo} has two label maps, {' and '.join(map(str, label_maps))}; remove one"


def _exact(file: _File, is_label: bool) -> str:
    return file.place.name


def _composed(file: _File, is_label: bool) -> str:
    """The name in one Unicode form; the system that wrote it may use another."""
    return unicodedata.normalize("NFC", file.place.name)


def _bare(file: _File, is_label: bool) -> str:
    """The name without endings that tell photos and label maps apart."""
    name = _composed(file, is_label)
    return PHOTO_ENDING.sub("", LABEL_ENDING.sub("", name) if is_label else name)


def _counts(root: Path, files: list[_File]) -> list[str]:
    """How many files lie in each folder, for the three with most of them."""
    folders = Counter(file.path.parent.relative_to(root).as_posix() for file in files)
    listing = [f"{number} other pictures in {folder}" for folder, number in folders.most_common(3)]
    rest = sum(folders.values()) - sum(number for _, number in folders.most_common(3))
    return [*listing, f"{rest} elsewhere"] if rest else listing
