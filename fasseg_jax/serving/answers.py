"""Answers to a photo: its labels as a picture, as runs, as polygons or as shares."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt, UInt8
from PIL import Image

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.inference.outlines import find_outlines
from fasseg_jax.visualization.legend import class_shares
from fasseg_jax.visualization.overlay import draw_overlay

__all__ = ["FORMATS", "Answer", "Result", "class_runs", "json_bytes"]


@dataclasses.dataclass(frozen=True)
class Result:
    """A segmented photo.

    Attributes:
      image: the photo, with the EXIF orientation applied.
      labels: class ids.
      classes: names and palette.
      seconds: that the network took.
    """

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt[np.ndarray, "H W"]
    classes: ClassTable
    seconds: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """A format of answers.

    Attributes:
      content_type: of the body.
      body: from a result.
      help: what it holds, in a sentence.
    """

    content_type: str
    body: Callable[[Result], bytes]
    help: str


def json_bytes(content: Any) -> bytes:
    """JSON, as the server sends it."""
    return json.dumps(content, separators=(",", ":")).encode()


def _shares(result: Result) -> dict[str, Any]:
    """Size, time, and the classes that were found, largest first."""
    names, palette = result.classes.names, result.classes.palette
    height, width = result.labels.shape
    found = [
        {"id": i, "name": names[i], "color": palette[i].tolist(), "share": share}
        for i, share in class_shares(result.labels, len(names))
    ]
    return {"width": width, "height": height, "seconds": result.seconds, "classes": found}


def _page(result: Result) -> bytes:
    labels = result.labels
    encoded = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=-1).astype(np.uint8)
    photo = _data_url(result.image, "JPEG", quality=90)
    return json_bytes({**_shares(result), "photo": photo, "labels": _data_url(encoded, "PNG", compress_level=1)})


def _rle(result: Result) -> bytes:
    content, runs = _shares(result), class_runs(result.labels)
    for found in content["classes"]:
        found["rle"] = {"size": list(result.labels.shape), "counts": runs[found["id"]]}
    return json_bytes(content)


def _polygons(result: Result) -> bytes:
    polygons = [
        {
            "id": outline.class_id,
            "name": result.classes.names[outline.class_id],
            "area": outline.area,
            "box": list(outline.box),
            "corners": outline.corners.tolist(),
        }
        for outline in find_outlines(result.labels)
    ]
    return json_bytes({**_shares(result), "polygons": polygons})


def class_runs(labels: UInt[np.ndarray, "H W"]) -> dict[int, list[int]]:
    """The mask of each class as run lengths, as the uncompressed RLE of COCO counts them.

    Returns:
      For each class in `labels` the lengths of the runs, column after column from the top: first pixels outside of the
      mask (0 if it begins at the first pixel), then inside, outside and so on.
    """
    columns = labels.ravel(order="F")
    starts = np.flatnonzero(np.concatenate([[True], columns[1:] != columns[:-1]]))
    ends = np.append(starts[1:], columns.size)
    classes = columns[starts]
    runs = {}
    for class_id in np.unique(classes).tolist():
        of_class = classes == class_id
        borders = np.stack([starts[of_class], ends[of_class]], axis=-1).ravel()
        counts = np.diff(borders, prepend=0, append=columns.size)
        runs[class_id] = counts[: -1 if counts[-1] == 0 else None].tolist()
    return runs


def _png(picture: Image.Image, compress_level: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def _data_url(image: np.ndarray, kind: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


FORMATS = {  # the first is the default
    "page": Answer(
        "application/json",
        _page,
        "The classes; `photo`, a JPEG, and `labels`, a PNG with the low byte of the class id in red and the high byte "
        "in green, both as data URLs.",
    ),
    "shares": Answer("application/json", lambda result: json_bytes(_shares(result)), "The classes and their shares."),
    "labels": Answer(
        "image/png",
        lambda result: _png(Image.fromarray(result.labels), compress_level=6),
        "The class id of each pixel: one channel, 8 bits, or 16 for more than 255 classes.",
    ),
    "overlay": Answer(
        "image/png",
        lambda result: _png(draw_overlay(result.image, result.labels, result.classes), compress_level=1),
        "The classes in color over the photo, with a legend.",
    ),
    "rle": Answer(
        "application/json", _rle, "The classes, and the mask of each as an uncompressed RLE of COCO (column by column)."
    ),
    "polygons": Answer(
        "application/json",
        _polygons,
        "The classes, and the outline of each connected region, the largest first. An outline also encloses the "
        "regions in its holes, which come later and cover it.",
    ),
}
