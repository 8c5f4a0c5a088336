"""Metrics of label maps: pixel counts that add up over images and hosts, and the IoUs and accuracies of these counts.

docs/specification.md, section 6. Ignored pixels enter no count. At boundaries they are treated like the outside of the
image, in the ground truth and in the prediction, so the metrics never depend on what the network predicts there.
"""

import dataclasses
import math
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

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

BOUNDARY_WIDTH = 0.02  # part of the image's diagonal (Cheng et al., CVPR 2021)
PIXELS_AT_ONCE = 2**17  # pixels counted together; more would not fit into the processor's cache


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of pixels in one image or in many. They are integers, so sums are exact in any order.

    Attributes:
      confusion: pixels of each true class (row) that are predicted as each class (column).
      boundary_intersection: pixels on the class's boundary in both the ground truth and the prediction.
      boundary_union: pixels on its boundary in either; 0 for all classes if boundaries were not counted.
    """

    confusion: Int64[np.ndarray, "K K"]
    boundary_intersection: Int64[np.ndarray, "K"]
    boundary_union: Int64[np.ndarray, "K"]

    @classmethod
    def zeros(cls, num_classes: int) -> Self:
        """The counts of no images."""
        return cls.from_vector(np.zeros(num_classes * (num_classes + 2), np.int64))

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of both together."""
        return Counts.from_vector(self.to_vector() + other.to_vector())

    def to_vector(self) -> Int64[np.ndarray, "K*K+2*K"]:
        """All counts as one vector, to sum over hosts or to save."""
        return np.concatenate([self.confusion.ravel(), self.boundary_intersection, self.boundary_union])

    @classmethod
    def from_vector(cls, vector: Int64[np.ndarray, "n"]) -> Self:
        """The inverse of `to_vector`.

        Raises:
          ValueError: there is no number of classes K with K² + 2K counts.
        """
        num_classes = math.isqrt(vector.size + 1) - 1
        if vector.size != num_classes * (num_classes + 2):
            raise ValueError(f"counts of K classes are K² + 2K numbers; got {vector.size}")
        confusion, *boundary = np.split(vector, [num_classes**2, num_classes * (num_classes + 1)])
        return cls(confusion.reshape(num_classes, num_classes), *boundary)


@dataclasses.dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics from 0 to 1; NaN where undefined, for example the IoU of a class that occurs nowhere.

    Means are over the classes that occur in the ground truth.

    Attributes:
      mean_iou: mean of `iou`.
      frequency_weighted_iou: `iou` weighted by `truth_share`.
      mean_accuracy: mean of `accuracy`.
      pixel_accuracy: fraction of the pixels whose label is correct.
      mean_boundary_iou: mean of `boundary_iou`; NaN if boundaries were not counted.
      iou: intersection over union of each class.
      accuracy: fraction of the class's true pixels whose label is correct.
      boundary_iou: intersection over union of the class's boundary (see `find_boundary`).
      truth_share: fraction of the pixels that belong to the class in the ground truth.
      predicted_share: fraction of the same pixels that are predicted as the class.
    """

    mean_iou: float
    frequency_weighted_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    mean_boundary_iou: float
    iou: Float[np.ndarray, "K"]
    accuracy: Float[np.ndarray, "K"]
    boundary_iou: Float[np.ndarray, "K"]
    truth_share: Float[np.ndarray, "K"]
    predicted_share: Float[np.ndarray, "K"]


def count(
    truth: Integer[np.ndarray, "H W"],
    prediction: Integer[np.ndarray, "H W"],
    num_classes: int,
    ignore_label: int,
    boundary: bool = True,
    name: str = "image",
) -> Counts:
    """Count the pixels of one image.

    Args:
      truth: class ids 0 to K - 1, or `ignore_label`.
      prediction: class ids; any value where the ground truth is ignored.
      num_classes: K.
      ignore_label: label of ignored pixels in the ground truth.
      boundary: also count boundaries, which takes longer than the rest.
      name: the image's name in error messages.

    Raises:
      ValueError: the shapes differ, or a label is not a class id.
    """
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(
            f"{name}: ground truth and prediction must have one shape (H, W); got {truth.shape} and {prediction.shape}"
        )
    ignored = truth == ignore_label
    # Ignored pixels become a class of their own, K, in both maps, and leave the counts below.
    label_maps = [
        _as_classes(truth, ignored, num_classes, f"{name}: the ground truth"),
        _as_classes(prediction, ignored, num_classes, f"{name}: the prediction"),
    ]
    if not boundary:
        confusion = _joint_histogram(label_maps, (num_classes + 1, num_classes + 1))[:-1, :-1]
        none = np.zeros(num_classes, np.int64)
        return Counts(confusion, none, none)
    distance = boundary_distance((truth.shape[0], truth.shape[1]))
    boundaries = [find_boundary(labels, distance) for labels in label_maps]
    # (K, K, 2, 2): true class, predicted class, whether on the boundary in the ground truth, in the prediction
    joint = _joint_histogram([*label_maps, *boundaries], (num_classes + 1, num_classes + 1, 2, 2))[:-1, :-1]
    both = np.diagonal(joint[..., 1, 1])
    either = joint[..., 1, :].sum(axis=(1, 2)) + joint[..., 1].sum(axis=(0, 2)) - both
    return Counts(joint.sum(axis=(2, 3)), both, either)


def metrics_of(counts: Counts) -> SegmentationMetrics:
    """Compute the metrics from the counts: IoU = tp / (tp + fp + fn), accuracy = tp / (tp + fn)."""
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
    """The score that ranks images: the mIoU of the single image, over the classes in its ground truth.

    NaN if all pixels are ignored; such an image is not ranked.
    """
    return metrics_of(counts).mean_iou


def most_confused(confusion: Integer[np.ndarray, "K K"], limit: int) -> list[tuple[int, int]]:
    """The at most `limit` pairs (true class, predicted class) with the most wrong pixels, the largest first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [(int(truth), int(predicted)) for truth, predicted in pairs if wrong[truth, predicted]]


def boundary_distance(size: tuple[int, int]) -> int:
    """Width in pixels of the boundary in an image of `size` (height, width), after Cheng et al., CVPR 2021."""
    return max(1, round(BOUNDARY_WIDTH * math.hypot(*size)))


def find_boundary(labels: Integer[np.ndarray, "H W"], distance: int) -> Bool[np.ndarray, "H W"]:
    """Whether each pixel lies on the boundary of its own class, for all classes at once.

    By definition the boundary of a class is what its mask loses when it is eroded `distance` times by a 3x3 square,
    with zeros outside of the image. So a pixel lies on it if the square of 2 `distance` + 1 pixels around the pixel
    leaves the image or holds another label; and the square holds another label if two neighbors in it differ.
    """
    height, width = labels.shape
    boundary = np.ones(labels.shape, bool)
    if min(height, width) <= 2 * distance:
        return boundary
    in_row = _any_within(labels[:, 1:] != labels[:, :-1], 2 * distance, axis=1)  # (H, W - 2d)
    middle = labels[:, distance : width - distance]
    # Two rows hold different labels if either row does, or if the two differ in the middle column.
    in_two_rows = in_row[1:] | in_row[:-1] | (middle[1:] != middle[:-1])  # (H - 1, W - 2d)
    boundary[distance : height - distance, distance : width - distance] = _any_within(in_two_rows, 2 * distance, axis=0)
    return boundary


def _any_within(flags: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Whether any of `length` consecutive flags is set, for each position where so many fit, in log2(length) steps."""
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
        raise ValueError(f"{which} holds ids that are no classes: {ids}; the {num_classes} classes have ids from 0")
    dtype = np.min_scalar_type(num_classes)
    return np.where(ignored, dtype.type(num_classes), labels.astype(dtype))


def _joint_histogram(maps: list[np.ndarray], sizes: tuple[int, ...]) -> np.ndarray:
    """The number of pixels with each combination of values, of shape `sizes`; each map's values are below its size."""
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
    """Part / whole; NaN for 0 / 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean(values: np.ndarray) -> float:
    """The mean; NaN of no values."""
    return float(values.mean()) if values.size else math.nan
