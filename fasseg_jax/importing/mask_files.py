"""Finds masks and their photos in folders, and reads masks of colors."""

import dataclasses
import re

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.folder_words import LABEL_ENDING, LABEL_WORDS, PHOTO_ENDING, PHOTO_WORDS, split_of
from fasseg_jax.data.images import list_photos, open_image, reason
from fasseg_jax.importing.annotations import IGNORED
from fasseg_jax.runtime.files import Path

__all__ = ["IGNORED_NAMES", "MaskPair", "find_pairs", "is_gray", "map_colors", "read_rgb"]

IGNORED_NAMES = ("void", "unlabeled", "unlabelled", "ignore", "ignored", "__ignore__")  # pixels that count for nothing
MASK_WORDS = LABEL_WORDS - {"segmentationclass"}  # of VOC, a format of its own


@dataclasses.dataclass(frozen=True)
class MaskPair:
    """A photo, its mask, the split that a folder names, and a name for the result."""

    photo: Path
    mask: Path
    split: str | None
    name: str


def find_pairs(source: Path, photos: Path | None, exclude: Path | None = None) -> tuple[list[MaskPair], list[str]]:
    """Pair photos and masks below a folder.

    A mask lies in a folder called masks, labels, annotations, ... (also train_labels or trainannot), or its name ends
    in _mask, _label, ... What is left of the paths without such words must be the same.

    Args:
      source: a folder.
      photos: another folder of photos.
      exclude: a folder to leave out.

    Returns:
      The pairs; and a line for each file without a partner, or with two.
    """
    if not source.is_dir():
        raise DataError(f"{source} is no folder; name the folder that holds photos and masks")
    found: dict[tuple[bool, str], list[tuple[Path, str | None, str]]] = {}
    for folder in [source, *([photos] if photos else [])]:
        for path in list_photos(folder, exclude).paths:
            is_mask, split, name = _describe(path.relative_to(folder))
            found.setdefault((is_mask and folder == source, f"{split}/{name.rpartition('.')[0]}"), []).append(
                (path, split, name)
            )
    keys = sorted({key for is_mask, key in found})
    pairs: list[MaskPair] = []
    problems: list[str] = []
    for key in keys:
        of_photo, of_mask = found.get((False, key), []), found.get((True, key), [])
        for kind, files in (("photos", of_photo), ("masks", of_mask)):
            if len(files) > 1:
                problems.append(
                    f"{files[0][0]}: {len(files)} {kind} have this name ({files[1][0]}); remove all but one"
                )
        if not of_mask:
            problems += [f"{path}: has no mask; add it, or remove the photo" for path, _, _ in of_photo]
        if not of_photo:
            problems += [
                f"{path}: there is no photo for this mask; add it, or name its folder by --photos"
                for path, _, _ in of_mask
            ]
        if len(of_photo) == len(of_mask) == 1:
            photo, split, name = of_photo[0]
            pairs.append(MaskPair(photo, of_mask[0][0], split, name))
    return pairs, problems


def _describe(path: Path) -> tuple[bool, str | None, str]:
    """Whether a file is a mask, its split, and what is left of its path without both."""
    is_mask, split, rest = False, None, []
    for part in path.parts[:-1]:
        words = [
            word for word in re.split(r"[_\s.-]", re.sub(r"(?i)(annot|masks?|labels?)$", r"_\1", part).lower()) if word
        ]
        is_mask = is_mask or bool(MASK_WORDS & set(words))
        words = [word for word in words if word not in MASK_WORDS | PHOTO_WORDS]
        splits = [split_of(word) for word in words if split_of(word)]
        split = splits[0] if splits else split
        rest += ["_".join(word for word in words if not split_of(word))]
    stem = path.stem
    if LABEL_ENDING.search(stem):
        is_mask, stem = True, LABEL_ENDING.sub("", stem)
    stem = PHOTO_ENDING.sub("", stem)
    return is_mask, split, "/".join([*filter(None, rest), stem + path.suffix])


def read_rgb(mask: Path) -> np.ndarray:
    """The colors of a mask as the file holds them, (H, W, 3) uint8; transparency is dropped.

    Raises:
      DataError: the file is no image, or has more than 8 bits.
    """
    try:
        with open_image(mask) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{mask}: is a mask of mode {image.mode}, which has no colors of 8 bits; save it as PNG"
                )
            return np.asarray(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise DataError(f"{mask}: cannot be read as a mask ({reason(error)}); replace it") from error


def is_gray(rgb: np.ndarray) -> bool:
    """Whether all pixels of (H, W, 3) are gray."""
    return bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all())


def map_colors(
    rgb: np.ndarray, colors: np.ndarray, indices: list[int], tolerance: int, mask: Path, ignore_others: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Replace colors by the indices of the nearest listed ones.

    Args:
      rgb: (H, W, 3) uint8.
      colors: (K, 3) uint8.
      indices: K numbers, what each color becomes.
      tolerance: the most that a channel may differ from the listed color.
      mask: names the file in messages.
      ignore_others: whether a color that differs more from all that are listed means ignored pixels.

    Returns:
      (H, W) int32, and notes.

    Raises:
      DataError: a color differs more from all that are listed, and `ignore_others` is False.
    """
    codes = rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    used, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    values = np.stack([used >> 16, used >> 8 & 255, used & 255], axis=1)  # (n, 3)
    table = np.full(len(used), IGNORED, np.int32)
    farthest = np.full(len(used), 256)
    for color, index in zip(colors.astype(np.int32), indices, strict=True):
        distance = np.abs(values - color).max(axis=1)
        nearer = distance < farthest
        table[nearer], farthest[nearer] = index, distance[nearer]
    if (unknown := farthest > tolerance).any():
        most = np.flatnonzero(unknown)[np.argsort(-counts[unknown])][:3]
        listing = ", ".join(f"{tuple(values[index].tolist())} in {counts[index]} pixels" for index in most)
        more = f", and {np.count_nonzero(unknown) - 3} other colors" if np.count_nonzero(unknown) > 3 else ""
        if not ignore_others:
            raise DataError(
                f"{mask}: has the color {listing}{more}; list it in --classes, or ignore such pixels by "
                "--unlabeled=ignore, or if edges are blurred set --tolerance, for example "
                f"{min(int(farthest.max()), 64)}"
            )
        table[unknown] = IGNORED
        return table[inverse].reshape(codes.shape), [f"pixels of the color {listing}{more} are ignored"]
    return table[inverse].reshape(codes.shape), []
