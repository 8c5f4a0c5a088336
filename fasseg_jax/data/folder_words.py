"""What the names of folders and files say: photos or label maps, which split, which photo."""

import dataclasses
import functools
import re
from typing import Literal

from fasseg_jax.runtime.files import Path

__all__ = [
    "LABEL_ENDING",
    "LABEL_WORDS",
    "PHOTO_ENDING",
    "PHOTO_WORDS",
    "PICTURE_ENDING",
    "Place",
    "place_of",
    "split_of",
]

SPLIT_NAMES = {  # names of splits in other programs -> the project's, and "test", which is left out
    **dict.fromkeys(("train", "training"), "training"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "test-dev"), "test"),
}
LABEL_WORDS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots", "gt", "groundtruth", "truth"),
    *("seg", "segmentation", "segmentations", "segmentationclass", "labelmap", "labelmaps"),
}
PHOTO_WORDS = {
    *("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "rgb", "input", "inputs"),
    *("jpegimages", "leftimg8bit"),
}
FILLERS = {"map", "maps", "ground", "class", "ids", "png", "jpg", "jpeg", "semantic"}  # beside one of the words above
# What the file name of a label map has after that of its photo.
LABEL_ENDING = re.compile(
    r"[_.-]((gtfine[_.-])?label_?(train_?)?ids|masks?|labels?|label_?map|annot|annotation|gt|seg|segmentation|l|p)$",
    re.IGNORECASE,
)
PHOTO_ENDING = re.compile(r"[_.-](image|img|photo|rgb|sat|leftimg8bit)$", re.IGNORECASE)
# Pictures of labels that people look at, beside label maps.
PICTURE_ENDING = re.compile(
    r"[_.-]((gtfine[_.-])?(colou?rs?|instance_?ids)|colou?r_?mask|instances?|overlay|vis|viz|preview)$", re.IGNORECASE
)

Role = Literal["photo", "label"]


@dataclasses.dataclass(frozen=True)
class Place:
    """What a path below the folder of the data says.

    Attributes:
      role: what its folders say that the file is; None if they say nothing.
      split: "training", "validation", "test", or None.
      folder: the folders that say so, "." if there are none.
      name: the path without these folders and the extension, with "/".
    """

    role: Role | None
    split: str | None
    folder: str
    name: str


def split_of(name: str) -> str | None:
    """The project's name of a split, or None if `name` is none."""
    return SPLIT_NAMES.get(name.lower())


def place_of(path: Path) -> Place:
    """Read a path, relative to the folder of the data.

    The first folder that names a role, and the first that names a split, count; all others are part of the name. A
    folder counts only if all its words do: "train_labels" names both, "train_station" nothing.
    """
    role, split, folder, rest = _read_folders(path.parts[:-1])
    return Place(role, split, folder, "/".join([*rest, path.stem]))


@functools.lru_cache(maxsize=10_000)  # many files lie in few folders
def _read_folders(parts: tuple[str, ...]) -> tuple[Role | None, str | None, str, tuple[str, ...]]:
    """Role, split, the folders that say so, and the others."""
    role: Role | None = None
    split: str | None = None
    folders, rest = [], []
    for part in parts:
        part_role, part_split = _meaning(part)
        if (part_role and role) or (part_split and split) or not (part_role or part_split):
            rest.append(part)
            continue
        role, split = role or part_role, split or part_split
        folders.append(part)
    return role, split, "/".join(folders) or ".", tuple(rest)


def _meaning(part: str) -> tuple[Role | None, str | None]:
    """The role and the split that a folder names."""
    text = part.lower()
    if text not in LABEL_WORDS | PHOTO_WORDS:
        text = re.sub(r"(annot|masks?|labels?|images?)$", r"_\1", text)  # trainannot
    role: Role | None = None
    split: str | None = None
    for word in filter(None, re.split(r"[_\s.-]+", text)):
        named = split_of(word) or split_of(word.rstrip("0123456789"))  # train2017
        if named and split is None:
            split = named
        elif word in LABEL_WORDS and role != "photo":
            role = "label"
        elif word in PHOTO_WORDS and role is None:
            role = "photo"
        elif word not in FILLERS:
            return None, None
    return role, split
