"""Metrics of label maps: counts that add up over images and hosts, and the shares that follow from them (SPEC 6).

Ignored pixels are left out of every count. For boundaries they are like the outside of the image: neither the truth's
nor the prediction's classes go on there, so that nothing depends on what was predicted where nobody knows the truth.
"""

import dataclasses
import math
from typing import Self

import numpy as np

__all__ = [
    "Counts",
    "SegmentationMetrics",
    "boundary_distance",
    "count",
    "find_boundary",
    "image_score",
    "metrics_of",
    "most_confused",
]

BOUNDARY_WIDTH = 0.02  # of the image's diagonal (Cheng et al., CVPR 2021)
PIXELS_AT_ONCE = 2**17  # counted together: more would not stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class Counts:
    """Pixels counted in one image or in many. All are int64: sums are exact, whatever their order.

    Attributes:
      confusion: (K, K); rows are true classes, columns predicted ones.
      boundary_intersection: (K,) pixels of the class's boundary both in the truth and in the prediction.
      boundary_union: (K,) pixels of its boundary in either; 0 for all classes where boundaries were not counted.
    """

    confusion: np.ndarray
    boundary_intersection: np.ndarray
    boundary_union: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int) -> Self:
        """Counts of no image."""
        return cls.from_vector(np.zeros(num_classes * (num_classes + 2), np.int64))

    def __add__(self, other: "Counts") -> "Counts":
        """Counts of both together."""
        return Counts.from_vector(self.to_vector() + other.to_vector())

    def to_vector(self) -> np.ndarray:
        """All counts as one int64 vector, (K² + 2K,): to sum over hosts or to keep in a file."""
        return np.concatenate([self.confusion.ravel(), self.boundary_intersection, self.boundary_union])

    @classmethod
    def from_vector(cls, vector: np.ndarray) -> Self:
        """The inverse of `to_vector`.

        Raises:
          ValueError: no number of classes gives a vector of this length.
        """
        num_classes = math.isqrt(vector.size + 1) - 1
        if vector.size != num_classes * (num_classes + 2):
            raise ValueError(f"counts of K classes are K² + 2K numbers; got {vector.size}")
        confusion, *boundary = np.split(vector, [num_classes**2, num_classes * (num_classes + 1)])
        return cls(confusion.reshape(num_classes, num_classes), *boundary)


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """Shares from 0 to 1; NaN where undefined, as for classes that neither truth nor prediction holds.

    Means are over the classes that the ground truth holds.

    Attributes:
      mean_iou: mean of `iou`.
      frequency_weighted_iou: `iou` weighted by `truth_share`.
      mean_accuracy: mean of `accuracy`.
      pixel_accuracy: share of the pixels that are right.
      mean_boundary_iou: mean of `boundary_iou`; NaN if boundaries were not counted.
      iou: (K,) intersection over union of each class.
      accuracy: (K,) share of the class's true pixels that are right.
      boundary_iou: (K,) intersection over union of the class's boundary, see `find_boundary`.
      truth_share: (K,) share of the class in the pixels of the truth.
      predicted_share: (K,) share of the class in the prediction, at the same pixels.
    """

    mean_iou: float
    frequency_weighted_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    mean_boundary_iou: float
    iou: np.ndarray
    accuracy: np.ndarray
    boundary_iou: np.ndarray
    truth_share: np.ndarray
    predicted_share: np.ndarray


def count(
    truth: np.ndarray,
    prediction: np.ndarray,
    num_classes: int,
    ignore_label: int,
    boundary: bool = True,
    name: str = "image",
) -> Counts:
    """Count the pixels of one image.

    Args:
      truth: (H, W) integers: class ids 0 to K - 1, or `ignore_label`.
      prediction: (H, W) integers: class ids; where the truth is ignored, anything.
      num_classes: K.
      ignore_label: the truth's label of pixels that count for nothing.
      boundary: whether to count boundaries too, which takes longer than the rest.
      name: of the image, for error messages.

    Raises:
      ValueError: shapes differ, or ids are no classes.
    """
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(f"{name}: truth and prediction must be (H, W) alike; got {truth.shape} and {prediction.shape}")
    ignored = truth == ignore_label
    # Ignored pixels become a class of their own, K, in both maps: no other is ever compared with it.
    truth, prediction = (
        _as_classes(labels, ignored, num_classes, f"{name}: the {which}")
        for labels, which in ((truth, "truth"), (prediction, "prediction"))
    )
    distance = boundary_distance(truth.shape)
    boundaries = [find_boundary(labels, distance) for labels in (truth, prediction)] if boundary else []
    joint = _joint_histogram([truth, prediction, *boundaries], (num_classes + 1,) * 2 + (2,) * len(boundaries))
    joint = joint[:num_classes, :num_classes]  # ignored pixels left out
    if not boundary:
        none = np.zeros(num_classes, np.int64)
        return Counts(joint, none, none)
    # joint: (K, K, 2, 2): true class, predicted class, whether on the boundary in the truth, in the prediction
    both = np.diagonal(joint[..., 1, 1])
    either = joint[..., 1, :].sum(axis=(1, 2)) + joint[..., 1].sum(axis=(0, 2)) - both
    return Counts(joint.sum(axis=(2, 3)), both, either)


def metrics_of(counts: Counts) -> SegmentationMetrics:
    """The metrics that follow from counts: IoU = tp / (tp + fp + fn), accuracy = tp / (tp + fn)."""
    right = np.diagonal(counts.confusion)
    truth, predicted = counts.confusion.sum(axis=1), counts.confusion.sum(axis=0)
    present = truth > 0
    iou, accuracy = _ratio(right, truth + predicted - right), _ratio(right, truth)
    boundary_iou = _ratio(counts.boundary_intersection, counts.boundary_union)
    return SegmentationMetrics(
        mean_iou=_mean(iou[present]),
        frequency_weighted_iou=float(_ratio((truth[present] * iou[present]).sum(), truth.sum())),
        mean_accuracy=_mean(accuracy[present]),
        pixel_accuracy=float(_ratio(right.sum(), truth.sum())),
        mean_boundary_iou=_mean(boundary_iou[present]),
        iou=iou,
        accuracy=accuracy,
        boundary_iou=boundary_iou,
        truth_share=_ratio(truth, truth.sum()),
        predicted_share=_ratio(predicted, truth.sum()),
    )


def image_score(counts: Counts) -> float:
    """The number that ranks images from worst to best: the mIoU of this image alone, over the classes in its truth.

    NaN where all pixels are ignored; such an image has no place in a ranking.
    """
    return metrics_of(counts).mean_iou


def most_confused(confusion: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """The pairs (true class, predicted class) that most wrong pixels belong to, at most `limit`, the largest first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(truth), int(predicted)) for truth, predicted in pairs if wrong[truth, predicted]]


def boundary_distance(size: tuple[int, int]) -> int:
    """How many pixels wide the boundary is in an image of `size` (height, width), after Cheng et al. 2021."""
    return max(1, round(BOUNDARY_WIDTH * math.hypot(*size)))


def find_boundary(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels on the boundary of their own class, (H, W) bool, for all classes of (H, W) labels at once.

    A class's boundary is what its mask loses when it is eroded `distance` times by a 3x3 square, outside the image
    being no class. That is where the square of 2 `distance` + 1 pixels around a pixel holds another label or leaves the
    image; and it holds another label if two neighbours in it differ.
    """
    height, width = labels.shape
    boundary = np.ones(labels.shape, bool)
    if min(height, width) <= 2 * distance:
        return boundary
    change = _any_within(labels[:, 1:] != labels[:, :-1], 2 * distance, axis=1)  # (H, W - 2d): within the row
    inner = labels[:, distance : width - distance]
    # Between a row and the next: a change within either, or from one to the other in the middle column.
    change = change[1:] | change[:-1] | (inner[1:] != inner[:-1])  # (H - 1, W - 2d)
    boundary[distance : height - distance, distance : width - distance] = _any_within(change, 2 * distance, axis=0)
    return boundary


def _any_within(flags: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Whether any of `length` flags in a row is set, for each place where so many fit; by doubling, in log2 steps."""
    flags = np.moveaxis(flags, axis, 0)
    covered = 1
    while covered < length:
        step = min(covered, length - covered)
        flags = flags[step:] | flags[:-step]
        covered += step
    return np.moveaxis(flags, 0, axis)


def _as_classes(labels: np.ndarray, ignored: np.ndarray, num_classes: int, which: str) -> np.ndarray:
    """Labels as small unsigned integers, `num_classes` where ignored."""
    wrong = (labels < 0) | (labels >= num_classes)
    wrong &= ~ignored
    if wrong.any():
        ids = ", ".join(str(i) for i in np.unique(labels[wrong])[:10])
        raise ValueError(f"{which} holds ids that are no classes: {ids}; {num_classes} classes have ids from 0")
    dtype = np.min_scalar_type(num_classes)
    return np.where(ignored, dtype.type(num_classes), labels.astype(dtype))


def _joint_histogram(maps: list[np.ndarray], sizes: tuple[int, ...]) -> np.ndarray:
    """How many pixels have each combination of values, int64 of shape `sizes`; each map has values below its size."""
    histogram = np.zeros(math.prod(sizes), np.int64)
    rows = max(1, PIXELS_AT_ONCE // max(1, maps[0].shape[1]))
    for start in range(0, len(maps[0]), rows):
        index = np.zeros(maps[0][start : start + rows].shape, np.int64)
        for values, size in zip(maps, sizes, strict=True):
            index *= size
            index += values[start : start + rows]
        histogram += np.bincount(index.ravel(), minlength=histogram.size)
    return histogram.reshape(sizes)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN for nothing of nothing."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean(values: np.ndarray) -> float:
    """NaN of no values; no value is left out."""
    return float(values.mean()) if values.size else math.nan
