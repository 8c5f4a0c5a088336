"""Masks that paint each class in a color, with a table of the colors."""

from fasseg_jax.data.classes import DataError
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.importing.annotations import IGNORED, Annotations, Format, ImportOptions, Item
from fasseg_jax.importing.class_lists import read_class_list
from fasseg_jax.importing.mask_files import IGNORED_NAMES, MaskPair, find_pairs, is_gray, map_colors, read_rgb
from fasseg_jax.runtime.files import Path

__all__ = ["COLOR_MASKS"]

TABLES = ("class_dict.csv", "labelmap.txt", "label_colors.txt", "classes.txt")  # of colors, as other programs call them


def recognize(source: Path) -> bool:
    """Whether there are photos with masks, the first of which has colors."""
    try:
        pairs, _ = find_pairs(source, None)
        return bool(pairs) and not is_gray(read_rgb(pairs[0].mask))
    except (DataError, OSError):
        return False


def read(source: Path, options: ImportOptions) -> Annotations:
    """Pair photos and masks, and read the table of colors."""
    pairs, problems = find_pairs(source, options.photos, options.output)
    names, colors = options.classes, options.colors
    table = next((source / name for name in TABLES if (source / name).is_file()), None)
    if names is None and table is not None:
        names, colors = read_class_list(table)
    if names is None or colors is None:
        raise DataError(
            f"{source}: give the colors of the classes by --classes=FILE, a line 'R G B NAME' for each; also read are "
            f"{', '.join(TABLES)} in that folder"
        )
    # With --classes, its ids are those of the result; so a class "void" is then a class like others.
    kept = [name for name in names if options.classes is not None or name.lower() not in IGNORED_NAMES]
    indices = [kept.index(name) if name in kept else IGNORED for name in names]
    ignored = [name for name in names if name not in kept]
    notes = [f"pixels of {', '.join(ignored)} are ignored, as the name says"] if ignored else []

    ignore = options.unlabeled == "ignore"

    def item(pair: MaskPair) -> Item:
        return Item(
            name=pair.name,
            photo=pair.photo,
            origin=str(pair.mask),
            labels=lambda: map_colors(read_rgb(pair.mask), colors, indices, options.tolerance, pair.mask, ignore),
            version=f"{file_version(pair.mask)} {names} {colors.tolist()} {ignore}",
            split=pair.split,
        )

    colors_of_kept = colors[[name in kept for name in names]]
    return Annotations(tuple(map(item, pairs)), tuple(kept), colors_of_kept, tuple(problems), tuple(notes))


COLOR_MASKS = Format("photos and masks of colors", recognize, read)
