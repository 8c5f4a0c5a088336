"""Bilinear samples of masks and label maps at points.

They compute the same as `reference.sample_masks`. The differences: masks whose pixels lie together share their gathers,
TPUs use matmuls in place of gathers, and masks of classes are sampled from the label map, without being formed.

Points are xy in [0, 1] of a map's width and height, pixel centers at half-integers; a map is zero outside.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, UInt32

from fasseg_jax.ops.bilinear import corners, north_west

__all__ = [
    "LabelsAndWeights",
    "PackedLabels",
    "masks_of_classes",
    "pack_labels",
    "sample_class_masks",
    "sample_labels",
    "sample_masks",
    "sample_masks_at_shared_points",
    "sample_masks_roughly",
    "spread_on_masks",
]


# Labels and bilinear weights of the four pixels around each point.
LabelsAndWeights = list[tuple[Integer[Array, "N P"], Float[Array, "N P"]]]


def sample_masks(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """Sample each mask at points of its own.

    A TPU gathers single numbers so slowly that matmuls take a hundredth of the time, forward and backward
    (`spread_on_masks`), by its compiler's estimate for masks of 128 x 128.
    """
    return jax.lax.platform_dependent(masks, points, tpu=sample_by_matmuls, default=sample_by_gathers)


def sample_by_gathers(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """`sample_masks` as one gather for each corner."""
    n, h, w = masks.shape
    pixels = jnp.reshape(masks, -1)  # (N * h * w,)
    first = h * w * jnp.arange(n)[:, None]  # (N, 1), the index of each mask's first pixel
    return _sum_of(
        corner.weight * pixels.at[first + corner.pixel].get(mode="promise_in_bounds")
        for corner in corners(points[..., 0], points[..., 1], (h, w))
    )


def sample_by_matmuls(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """`sample_masks` by the kernel for TPUs."""
    _, h, w = masks.shape
    return _sum_of_tents(masks, points[..., 1] * h - 0.5, points[..., 0] * w - 0.5)


def sample_masks_roughly(masks: Float[Array, "N h w"], points: Float[Array, "N P 2"]) -> Float[Array, "N P"]:
    """`sample_masks` in one product of bfloat16 in place of three; for TPUs, elsewhere it is emulated.

    Pixels and weights are rounded by up to 2^-9 of their size.
    """
    return sample_by_matmuls(masks.astype(jnp.bfloat16), points)


def _sum_of_tents(*arguments):
    from fasseg_jax.ops.point_sampling_tpu import sum_of_tents  # Pallas takes a third of a second to import

    return sum_of_tents(*arguments)


def spread_on_masks(
    values: Float[Array, "N P"], points: Float[Array, "N P 2"], size: tuple[int, int], precision: str = "highest"
) -> Float[Array, "N h w"]:
    """The transpose of `sample_masks`: add each value to the pixels (h, w) = `size` around its point.

    With a `precision` below "highest" a TPU rounds values and weights to bfloat16.
    """
    by_matmul = functools.partial(spread_by_matmul, size=size, precision=precision)
    by_scatter = functools.partial(spread_by_scatter, size=size)
    return jax.lax.platform_dependent(values, points, tpu=by_matmul, default=by_scatter)


def spread_by_scatter(values, points, size):
    """`spread_on_masks` as one scatter for each corner."""
    masks = jax.ShapeDtypeStruct((len(values), *size), values.dtype)
    return jax.linear_transpose(functools.partial(sample_by_gathers, points=points), masks)(values)[0]


def spread_by_matmul(values, points, size, precision="highest"):
    """`spread_on_masks` as a matmul of one product of bfloat16, or of three, as `point_sampling_tpu` does."""

    def tents(position, length):  # (N, P) -> (N, P, length)
        return jnp.maximum(1 - jnp.abs(position[..., None] * length - 0.5 - jnp.arange(length)), 0)

    rows, columns = (tents(points[..., axis], length) for axis, length in ((1, size[0]), (0, size[1])))
    products = "high" if precision == "highest" else "default"
    return jnp.einsum("nph,npw->nhw", rows, columns * values[..., None], precision=products)


def sample_masks_at_shared_points(masks: Float[Array, "h w N"], points: Float[Array, "P 2"]) -> Float[Array, "P N"]:
    """Sample all masks at the same points. The values of all masks at a pixel lie together in memory."""
    h, w, n = masks.shape
    pixels = masks.reshape(h * w, n)
    return _sum_of(
        corner.weight[:, None] * pixels.at[corner.pixel].get(mode="promise_in_bounds")  # (P, N)
        for corner in corners(points[:, 0], points[:, 1], (h, w))
    )


@flax.struct.dataclass
class PackedLabels:
    """Label maps in which the labels of four pixels that touch lie together, so that a sample needs one gather.

    Attributes:
      words: each holds one, two or all of the labels north-west, north-east, south-west and south-east of a corner
        between pixels; the lowest bits hold the first. The corners of all images follow each other: a TPU would copy an
        array with an axis of images into that order before each gather.
      sixths: for the kernel for TPUs. Of each piece of three rows by two columns one pixel, row by row; pieces begin at
        each second row and at each column. What is outside of a map may be anything: it has weight zero.
      size: H and W of the label maps.
      dtype: of the labels.
    """

    words: tuple[UInt32[Array, "corners"], ...]
    sixths: tuple[Integer[Array, "B groups W"], ...]
    size: tuple[int, int] = flax.struct.field(pytree_node=False)
    dtype: jnp.dtype = flax.struct.field(pytree_node=False)


def pack_labels(labels: Integer[Array, "B H W"]) -> PackedLabels:
    """Pack label maps of up to 32 bits. A map has (H + 1) x (W + 1) corners; outside of it the label is 0."""
    _, height, width = labels.shape
    bits = 8 * labels.dtype.itemsize
    padded = jnp.pad(labels, ((0, 0), (1, 1), (1, 1))).astype(jnp.uint32) & jnp.uint32(2**bits - 1)
    north, south = padded[:, :-1], padded[:, 1:]
    four = north[..., :-1], north[..., 1:], south[..., :-1], south[..., 1:]
    in_word = 32 // bits
    words = [
        _sum_of(label << (bits * place) for place, label in enumerate(four[first : first + in_word]))
        for first in range(0, 4, in_word)
    ]
    groups = -(-height // 2)
    rows = jnp.pad(labels, ((0, 0), (0, 2 * groups + 2 - height), (0, 1))).reshape(-1, groups + 1, 2, width + 1)
    three = rows[:, :-1, 0], rows[:, :-1, 1], rows[:, 1:, 0]
    sixths = tuple(row[..., column : column + width] for row in three for column in range(2))
    return PackedLabels(tuple(word.reshape(-1) for word in words), sixths, (height, width), labels.dtype)


def sample_labels(labels: PackedLabels, image: Int[Array, "N"], points: Float[Array, "N P 2"]) -> LabelsAndWeights:
    """Labels and bilinear weights of the four pixels around points, each row of which lies in the image `image[n]`.

    The mask of class c is one where the label is c. Its samples are sum(weight * (label == c)), fractional as those of
    any mask, so no mask is ever formed.
    """
    height, width = labels.size
    x, y = points[..., 0], points[..., 1]
    column, row = (pixel.astype(jnp.int32) + 1 for pixel in north_west(x, y, labels.size))
    corner = image[:, None] * ((height + 1) * (width + 1)) + row * (width + 1) + column  # (N, P)
    bits = 8 * labels.dtype.itemsize
    found = []
    for word in labels.words:
        values = word.at[corner].get(mode="promise_in_bounds")
        found += [((values >> n) & jnp.uint32(2**bits - 1)).astype(labels.dtype) for n in range(0, 32, bits)]
    weights = [corner.weight for corner in corners(x, y, labels.size)]
    return list(zip(found, weights, strict=True))


def masks_of_classes(labels: LabelsAndWeights, classes: Int[Array, "N t"]) -> Float[Array, "N P t"]:
    """The samples of the masks of several classes, those of `classes[n]` for each row n of points."""
    return _sum_of(weight[..., None] * (label[..., None] == classes[:, None]) for label, weight in labels)


def sample_class_masks(
    labels: PackedLabels, image: Int[Array, "N"], classes: Int[Array, "N"], points: Float[Array, "N P 2"]
) -> Float[Array, "N P"]:
    """Sample the mask of one class for each row of points: `classes[n]` in the image `image[n]`."""
    arguments = labels, image, classes, points
    return jax.lax.platform_dependent(*arguments, tpu=class_masks_by_matmuls, default=class_masks_by_gathers)


def class_masks_by_gathers(labels, image, classes, points):
    """`sample_class_masks` by a gather of the labels."""
    corners_of_points = sample_labels(labels, image, points)
    return _sum_of(weight * (label == classes[:, None]) for label, weight in corners_of_points)


def class_masks_by_matmuls(labels, image, classes, points):
    """`sample_class_masks` by the kernel for TPUs.

    A number holds six pixels of the mask, three rows by two columns, as bits; bfloat16 holds it exactly. So one number
    for two rows has the four pixels around any point between them: a quarter of the work of the mask itself.
    """
    of_class = (pixels[image] == classes[:, None, None] for pixels in labels.sixths)
    numbers = _sum_of(2**place * pixels.astype(jnp.bfloat16) for place, pixels in enumerate(of_class))

    x, y = points[..., 0], points[..., 1]
    west, north = (pixel.astype(jnp.int32) for pixel in north_west(x, y, labels.size))  # -1 at the borders
    column, row = jnp.maximum(west, 0), jnp.maximum(north, 0)
    number = _sum_of_tents(numbers, (row // 2).astype(jnp.float32), column.astype(jnp.float32)).astype(jnp.int32)
    four = number >> 2 * (row % 2)  # bits: north-west, north-east, south-west, south-east
    four = jnp.where(north < 0, four << 2, four)  # what was read as north is south of the border
    four = jnp.where(west < 0, four << 1, four)
    return _sum_of(corner.weight * (four >> place & 1) for place, corner in enumerate(corners(x, y, labels.size)))


def _sum_of(terms):
    return functools.reduce(jnp.add, terms)
