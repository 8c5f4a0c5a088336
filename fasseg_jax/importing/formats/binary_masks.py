"""Masks of two values: black for the background, white for the one class."""

import numpy as np

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.importing.annotations import Annotations, Format, ImportOptions, Item
from fasseg_jax.importing.mask_files import MaskPair, find_pairs, is_gray, map_colors, read_rgb
from fasseg_jax.runtime.files import Path

__all__ = ["BINARY_MASKS"]

NAMES = ("background", "foreground")


def recognize(source: Path) -> bool:
    """Whether there are photos with masks, the first of which is black and white."""
    try:
        pairs, _ = find_pairs(source, None)
        if not pairs:
            return False
        rgb = read_rgb(pairs[0].mask)
        return is_gray(rgb) and bool(np.isin(rgb, (0, 255)).all())
    except (DataError, OSError):
        return False


def read(source: Path, options: ImportOptions) -> Annotations:
    """Pair photos and masks."""
    pairs, problems = find_pairs(source, options.photos, options.output)
    names = NAMES if options.classes is None else options.classes
    if len(names) != 2:
        raise DataError(
            f"masks of 0 and 255 have two classes, --classes lists {len(names)}; the first is that of black"
        )
    black_and_white = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)

    def item(pair: MaskPair) -> Item:
        return Item(
            name=pair.name,
            photo=pair.photo,
            origin=str(pair.mask),
            labels=lambda: map_colors(read_rgb(pair.mask), black_and_white, [0, 1], options.tolerance, pair.mask),
            version=file_version(pair.mask),
            split=pair.split,
        )

    return Annotations(tuple(map(item, pairs)), names, problems=tuple(problems))


BINARY_MASKS = Format("photos and masks of 0 and 255", recognize, read)
