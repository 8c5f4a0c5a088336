"""How a player shows the frames of a video: which way up, in which proportions, and when."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Shaped

__all__ = ["Orientation", "VideoClock", "nearest_orientation", "square_pixels"]

QUARTER_TURN = 0.02  # a matrix that deviates by more than that, about one degree, is no quarter turn
# Pixels that are so little from square are shown as they are: encoders round, and resampling would only blur.
NEARLY_SQUARE = Fraction(1, 200)
MAX_ASPECT = 10  # of a pixel; more is a damaged file
MAX_GAP = Fraction(6 * 3600)  # seconds between two frames; MP4 can hold hardly more


@dataclasses.dataclass(frozen=True)
class Orientation:
    """One of the eight ways to turn and mirror a stored frame.

    Attributes:
      transposed: rows become columns, first of all.
      flipped_rows: then the rows are reversed (upside down).
      flipped_columns: then the columns are reversed (left to right).
    """

    transposed: bool = False
    flipped_rows: bool = False
    flipped_columns: bool = False

    def apply(self, image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "h w C"]:
        """The image as it is shown; h, w = W, H if it is transposed."""
        if self.transposed:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flipped_rows else 1, :: -1 if self.flipped_columns else 1]


def nearest_orientation(matrix: Sequence[int]) -> tuple[Orientation, bool]:
    """Read a display matrix.

    Args:
      matrix: a, b, u, c, d, v, x, y, w, of which a to d are 16.16 fixed-point numbers: the stored pixel (x right, y
        down) is shown at (a x + c y, b x + d y), up to a shift.

    Returns:
      The orientation nearest to the matrix, and whether the matrix is that orientation, up to its scale.
    """
    a, b, c, d = (int(matrix[index]) for index in (0, 1, 3, 4))
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    to_right, down, rest = (c, b, (a, d)) if transposed else (a, d, (b, c))
    smallest = min(abs(to_right), abs(down))
    exact = smallest > 0 and max(map(abs, rest)) <= QUARTER_TURN * smallest
    return Orientation(transposed, flipped_rows=down < 0, flipped_columns=to_right < 0), exact


def square_pixels(height: int, width: int, aspect: Fraction | None) -> tuple[tuple[int, int], bool]:
    """The size that a frame has with square pixels. One side grows, so that nothing is lost.

    Args:
      height: of the stored frame.
      width: of the stored frame.
      aspect: width of a pixel by its height; None if the file does not say.

    Returns:
      (H, W), and whether the aspect is a possible one; if not, H and W are those stored.
    """
    if aspect is None or abs(aspect - 1) <= NEARLY_SQUARE:
        return (height, width), True
    if not Fraction(1, MAX_ASPECT) <= aspect <= MAX_ASPECT:
        return (height, width), False
    return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width), True


class VideoClock:
    """Gives each frame a time after that of the frame before, from whatever time stamps the file holds.

    Players and files of several parts differ in what they make of stamps that are missing, repeated, go back or jump by
    many hours. Here such a frame follows the one before at the video's rate, and the later frames follow it.

    Attributes:
      corrected: number of frames whose time was made so.
    """

    def __init__(self, rate: Fraction):
        """Begin at zero; `rate` is frames per second."""
        self.corrected = 0
        self._step = 1 / rate
        self._stamp: Fraction | None = None
        self._time: Fraction | None = None

    def tick(self, stamp: Fraction | None) -> Fraction:
        """The time of the next frame, in seconds since the first; `stamp` is the file's, None if it has none."""
        if self._time is None:
            self._time, self._stamp = Fraction(0), stamp
            return self._time
        step = None if stamp is None or self._stamp is None else stamp - self._stamp
        if step is None or not 0 < step <= MAX_GAP:
            step = self._step
            self.corrected += 1
        if stamp is not None:
            self._stamp = stamp
        elif self._stamp is not None:
            self._stamp += step
        self._time += step
        return self._time
