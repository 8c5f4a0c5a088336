"""PASCAL VOC: SegmentationClass/*.png, JPEGImages and ImageSets/Segmentation. http://host.robots.ox.ac.uk/pascal/VOC.

The masks are PNGs with a palette, whose indices are the ids, and 255 for the borders of objects. CVAT's "segmentation
mask" has the same folders with RGB masks, and the colors in labelmap.txt.
"""

from collections import defaultdict

import numpy as np

from fasseg_jax.data.classes import DataError, read_table_text
from fasseg_jax.data.folder_words import split_of
from fasseg_jax.data.images import PHOTO_EXTENSIONS, list_photos, open_image, reason
from fasseg_jax.data.labels import decode_labels
from fasseg_jax.data.sources.folder import file_version
from fasseg_jax.importing.annotations import IGNORED, Annotations, Format, ImportOptions, Item
from fasseg_jax.importing.class_lists import read_class_list
from fasseg_jax.importing.mask_files import IGNORED_NAMES, map_colors, read_rgb
from fasseg_jax.runtime.files import Path, list_files, require_regular_file

__all__ = ["VOC", "voc_colors"]

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MASKS, LISTS = "SegmentationClass", "ImageSets/Segmentation"


def voc_colors(count: int) -> np.ndarray:
    """The first colors of VOC's palette, (count, 3) uint8: the bits of the index, dealt out to the channels."""
    indices = np.arange(count)
    colors = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((indices >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def recognize(source: Path) -> bool:
    """Whether there is a folder SegmentationClass."""
    return bool(_roots(source))


def _roots(source: Path) -> list[Path]:
    """The folders that hold SegmentationClass."""
    if not source.is_dir():
        return []
    return sorted({file.parent.parent for file in list_files(source) if file.parent.name == MASKS})


def read(source: Path, options: ImportOptions) -> Annotations:
    """Read the masks that the lists name, or all masks if there are no lists."""
    roots = _roots(source)
    if len(roots) != 1:
        found = f"{len(roots)} folders {MASKS} ({', '.join(map(str, roots[:3]))})" if roots else f"no folder {MASKS}"
        raise DataError(f"{source} holds {found}; name the folder that holds one")
    (root,) = roots
    names, colors = _classes(root, options)
    masks = {path.stem: path for path in sorted((root / MASKS).iterdir()) if path.suffix.lower() in PHOTO_EXTENSIONS}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for folder in (root / "JPEGImages", options.photos):
        for path in list_photos(folder, options.output).paths if folder is not None and folder.is_dir() else ():
            by_stem[path.stem].append(path)
    lists = _lists(root) or dict.fromkeys(masks)
    items: list[Item] = []
    problems: list[str] = []
    for name, split in lists.items():
        mask = masks.get(name)
        if mask is None and split != "test":
            problems.append(f"{root / LISTS} names {name!r}, but there is no {root / MASKS / name}.png")
            continue
        try:
            items.append(_item(name, mask, split, by_stem, names, colors))
        except DataError as error:
            problems.append(str(error))
    notes = [
        f"{path}: is in no list of {root / LISTS}, and is left out" for name, path in masks.items() if name not in lists
    ]
    return Annotations(tuple(items), _kept(names), _colors(names, colors), tuple(problems), tuple(notes))


def _classes(root: Path, options: ImportOptions) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and colors of the indices."""
    names, colors = options.classes, options.colors
    if names is None and (root / "labelmap.txt").is_file():
        names, colors = read_class_list(root / "labelmap.txt")
    names = CLASSES if names is None else names
    return names, voc_colors(len(names)) if colors is None else colors


def _kept(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name.lower() not in IGNORED_NAMES)


def _colors(names: tuple[str, ...], colors: np.ndarray) -> np.ndarray:
    return colors[[name.lower() not in IGNORED_NAMES for name in names]]


def _lists(root: Path) -> dict[str, str | None]:
    """The split of each name that a list of ImageSets/Segmentation holds; None for lists that are no split."""
    found: dict[str, str | None] = {}
    folder = root / LISTS
    for file in sorted(folder.glob("*.txt")) if folder.is_dir() else []:
        for line in read_table_text(file).splitlines():
            if name := line.strip().rpartition("/")[2]:
                found[name] = split_of(file.stem) or found.get(name)
    return found


def _item(
    name: str,
    mask: Path | None,
    split: str | None,
    by_stem: dict[str, list[Path]],
    names: tuple[str, ...],
    colors: np.ndarray,
) -> Item:
    photos = by_stem.get(name, [])
    if len(photos) != 1:
        several = (
            f"{len(photos)} photos are called so" if photos else "there is no photo for it; name its folder by --photos"
        )
        raise DataError(f"{mask or name}: {several}")
    return Item(
        name=photos[0].name,
        photo=photos[0],
        origin=str(mask or photos[0]),
        labels=lambda: (_read_mask(mask, names, colors) if mask else np.zeros((0, 0), np.int32), []),
        version=f"{file_version(mask) if mask else ''} {names}",
        split=split,
    )


def _read_mask(mask: Path, names: tuple[str, ...], colors: np.ndarray) -> np.ndarray:
    """Indices of the classes that are kept, (H, W) int32."""
    kept = _kept(names)
    indices = [IGNORED if name.lower() in IGNORED_NAMES else kept.index(name) for name in names]
    if _mode(mask) in ("RGB", "RGBA"):
        return map_colors(read_rgb(mask), colors, indices, 0, mask)[0]
    values = decode_labels(mask.read_bytes(), str(mask), stored=True)
    table = np.full(65536, -2, np.int32)
    table[: len(indices)] = indices
    table[255] = IGNORED if len(indices) <= 255 else table[255]
    labels = table[values]
    if (labels == -2).any():
        unknown = np.unique(values[labels == -2])[:8].tolist()
        raise DataError(
            f"{mask}: holds the ids {unknown}, but there are {len(names)} classes; list all by --classes=FILE"
        )
    return labels


def _mode(mask: Path) -> str:
    try:
        require_regular_file(mask)
        with open_image(mask) as image:
            return image.mode
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise DataError(f"{mask}: cannot be read as a mask ({reason(error)}); replace it") from error


VOC = Format("PASCAL VOC masks", recognize, read)
