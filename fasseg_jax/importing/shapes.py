"""From shapes to label maps."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from fasseg_jax.importing.annotations import IGNORED, UNLABELED, Shape, load_library

__all__ = ["DRAWN", "OVERLAP", "draw_shape", "paint"]

OVERLAP = "overlap: "  # how the note about pixels in several shapes begins
FARTHEST = 1e6  # pixels; coordinates beyond are mistakes, and drawing them would take forever


@dataclasses.dataclass(frozen=True)
class _Drawn:
    shape: Shape
    window: tuple[slice, slice]  # of the label map
    inside: np.ndarray  # bool, of the window
    area: int


def paint(
    shapes: Sequence[Shape], class_ids: dict[str, int], size: tuple[int, int], overlap: str
) -> tuple[np.ndarray, list[str]]:
    """Paint shapes over each other.

    Args:
      shapes: in the order in which the annotation holds them.
      class_ids: id of each class name. A shape of another class is painted as ignored.
      size: (H, W) of the label map.
      overlap: "later": a shape covers those before it; "smaller": a shape covers those with more pixels.

    Returns:
      (H, W) int32 of ids, `IGNORED` or `UNLABELED`, and a line for each shape that is dropped, clipped or doubtful.
    """
    labels = np.full(size, UNLABELED, np.int32)
    notes: list[str] = []
    shapes = [_in_pixels(shape, size) for shape in shapes]
    drawn = [result for shape in shapes if (result := _draw(shape, size, notes)) is not None]
    if overlap == "smaller":
        drawn.sort(key=lambda result: -result.area)
    overlapping = 0
    for result in drawn:
        label = result.shape.label
        if label is not None and label not in class_ids:
            notes.append(f"{_title(result.shape)}: its class is not listed; its pixels are ignored")
        window = labels[result.window]
        overlapping += int(np.count_nonzero(window[result.inside] != UNLABELED))
        window[result.inside] = IGNORED if label is None else class_ids.get(label, IGNORED)
    if overlapping:
        notes.append(f"{OVERLAP}{overlapping} pixels lie in several shapes; the {overlap} one has them")
    return labels, notes


def draw_shape(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a shape, (H, W) bool.

    Raises:
      ValueError: the shape covers none, or is broken; the message is the reason.
    """
    for ring in shape.rings:
        if not np.isfinite(ring).all():
            raise ValueError("has coordinates that are no numbers")
        if np.abs(ring).max(initial=0) > FARTHEST:
            raise ValueError(f"has a coordinate of {np.abs(ring).max():.6g} pixels")
    inside = DRAWN[shape.kind](shape, size)
    if not inside.any():
        raise ValueError("covers no pixel of the photo")
    return inside


def _draw(shape: Shape, size: tuple[int, int], notes: list[str]) -> _Drawn | None:
    try:
        inside = draw_shape(shape, size)
    except ValueError as error:
        notes.append(f"dropped {_title(shape)}: {error}")
        return None
    if outside := _reach_outside(shape, size):
        notes.append(f"clipped {_title(shape)}: it reaches {outside:.4g} pixels beyond the photo")
    if shape.kind in ("polygon", "coco_polygon") and any(_crosses_itself(ring) for ring in shape.rings):
        notes.append(f"{_title(shape)} crosses itself; filled by the even-odd rule")
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return _Drawn(shape, window, inside[window].copy(), int(np.count_nonzero(inside)))


def _in_pixels(shape: Shape, size: tuple[int, int]) -> Shape:
    """Scale coordinates to pixels. A hundredth of a pixel is rounded: 12 of 48 may be written as 0.2499999."""
    if not shape.whole:
        return shape
    scale = np.array([size[1], size[0]]) / shape.whole
    return dataclasses.replace(shape, rings=tuple(np.round(ring * scale, 2) for ring in shape.rings), whole=0)


def _title(shape: Shape) -> str:
    return f"{shape.where} ({'ignored' if shape.label is None else repr(shape.label)})"


def _reach_outside(shape: Shape, size: tuple[int, int]) -> float:
    """How many pixels a shape reaches beyond the photo; 0 if no center of a pixel can lie there."""
    if shape.kind == "mask":
        (height, width), (left, top) = shape.data[0].shape, shape.data[1]
        corners = np.array([[left, top], [left + width, top + height]], np.float64)
    elif shape.rings:
        corners = np.concatenate(shape.rings)
    else:
        return 0.0
    farthest = max(-corners.min(), (corners - (size[1], size[0])).max())
    return float(farthest) if farthest > 0.5 else 0.0


def _crosses_itself(ring: np.ndarray) -> bool:
    shapely = load_library("shapely")
    steps = np.any(ring != np.roll(ring, 1, axis=0), axis=1)  # a point twice in a row is no crossing
    ring = ring[steps]
    if len(ring) < 4:
        return False
    reason = shapely.is_valid_reason(shapely.Polygon(ring))
    return bool(reason.startswith("Self-intersection")) and _encloses_twice(shapely, ring)


def _encloses_twice(shapely, ring: np.ndarray) -> bool:
    """Whether an outline crosses itself in truth, rather than running back along a line as thin parts do."""
    line = shapely.LineString(np.concatenate([ring, ring[:1]]))
    faces = list(shapely.polygonize([shapely.unary_union(line)]).geoms)
    signed = abs(float(np.sum(ring[:, 0] * np.roll(ring[:, 1], -1) - ring[:, 1] * np.roll(ring[:, 0], -1)))) / 2
    return bool(abs(sum(face.area for face in faces) - signed) > 0.5)  # loops cancel, or count twice


def _polygon(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """Outlines as Pillow fills them, the border included: the way of labelme and of Cityscapes' own scripts."""
    canvas = Image.new("L", (size[1], size[0]))
    for ring in shape.rings:
        if len(ring) < 3:
            raise ValueError(f"has {len(ring)} points; a polygon needs 3")
        ImageDraw.Draw(canvas).polygon([tuple(point) for point in ring.tolist()], fill=1, outline=1)
    return np.asarray(canvas, bool)


def _coco_polygon(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """Outlines as pycocotools fills them."""
    if not shape.rings:
        raise ValueError("has no points")
    for ring in shape.rings:
        if len(ring) < 3:
            raise ValueError(f"has {len(ring)} points; a polygon needs 3")
    library = load_library("pycocotools.mask")
    return library.decode(
        library.merge(library.frPyObjects([ring.ravel().tolist() for ring in shape.rings], *size))
    ).astype(bool)


def _rectangle(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    return _box(shape, size, "rectangle")


def _ellipse(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    return _box(shape, size, "ellipse")


def _box(shape: Shape, size: tuple[int, int], kind: str) -> np.ndarray:
    corners = shape.rings[0]
    if len(corners) != 2:
        raise ValueError(f"has {len(corners)} points; a {kind} needs 2")
    canvas = Image.new("L", (size[1], size[0]))
    box = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
    getattr(ImageDraw.Draw(canvas), kind)(box, fill=1, outline=1)
    return np.asarray(canvas, bool)


def _mask(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    values, (left, top) = shape.data
    inside = np.zeros(size, bool)
    rows = slice(max(top, 0), max(0, min(size[0], top + values.shape[0])))
    columns = slice(max(left, 0), max(0, min(size[1], left + values.shape[1])))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside[rows, columns] = values[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return inside


def _rle(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    library = load_library("pycocotools.mask")
    if tuple(shape.data["size"]) != size:
        raise ValueError(f"its mask is of {shape.data['size']} (height, width), the photo of {list(size)}")
    return library.decode(shape.data).astype(bool)


def _dropped(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    raise ValueError(shape.data)


# The kind of a shape -> the function that finds its pixels, (H, W) bool; it raises a ValueError if the shape is broken.
DRAWN: dict[str, Callable[[Shape, tuple[int, int]], np.ndarray]] = {
    "polygon": _polygon,
    "coco_polygon": _coco_polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
    "mask": _mask,
    "rle": _rle,
    "dropped": _dropped,
}
