"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", 2021, equation 3), in pure JAX.

No operator to be built: bilinear sampling is written as gathers of rows, which XLA fuses with their weighting so that
the samples are never stored. A TPU, slow at gathers, samples by dense products instead (`deformable_attention_dense`),
an NVIDIA GPU in one kernel (`deformable_attention_fused`), both by Pallas, a part of JAX.
"""

import functools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from fasseg_jax.layers import Dtype
from fasseg_jax.parallel import DATA, on_each_device

__all__ = ["SAMPLED", "DeformableAttention", "Shapes", "deformable_sample", "reference_points"]

SAMPLED = "sampled"  # name of what rematerialisation may keep
Shapes = tuple[tuple[int, int], ...]  # (h, w) of each level


def reference_points(shapes: Shapes) -> np.ndarray:
    """Centres of all levels' tokens as xy in [0, 1], (N, 2), tokens row-major and level after level."""
    points = []
    for h, w in shapes:
        y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
        points.append(np.stack([x, y], axis=-1).reshape(h * w, 2))
    return np.concatenate(points).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def deformable_sample(
    values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes, method: str = "auto"
) -> jax.Array:
    """Weighted sum of bilinear samples from several levels.

    The derivative is written by hand: it takes half the time of the automatic one, and keeps no samples in memory.

    Args:
      values: (B, N, M, D), tokens of all levels concatenated, each level row-major.
      locations: (B, Q, M, levels, P, 2), xy in [0, 1] with pixel centres at half-integers; zero outside.
      weights: (B, Q, M, levels, P).
      shapes: (h, w) of each level, a tuple of tuples.
      method: "gather"; "dense" (products, for TPUs) or "fused" (one kernel, for NVIDIA GPUs), both emulated, slowly,
        elsewhere; or "auto": dense on TPUs, fused on NVIDIA GPUs from Ampere on, unless there are several and no mesh
        says how images lie on them (see `parallel.on_each_device`), else gather. To compile for a device that is not
        there, name the method.

    Returns:
      (B, Q, M, D) in the dtype of `values`; coordinates, weights and the sum are float32.
    """
    with jax.named_scope("deformable_sample"):
        sample, _ = _functions(method)
        return on_each_device(functools.partial(sample, shapes=shapes))(values, locations, weights)


def _sample_forward(values, locations, weights, shapes, method):
    return deformable_sample(values, locations, weights, shapes, method), (values, locations, weights)


def _sample_backward(shapes, method, inputs, gradient):
    with jax.named_scope("deformable_sample_gradients"):
        _, gradients = _functions(method)
        return on_each_device(functools.partial(gradients, shapes=shapes))(*inputs, gradient)


deformable_sample.defvjp(_sample_forward, _sample_backward)


def _functions(method: str) -> tuple[Callable, Callable]:
    """Sampling and its derivative. Pallas, which takes a third of a second to load, is loaded only where it is used."""
    if method == "auto":
        method = _fastest_method()
    if method == "dense":
        from fasseg_jax import deformable_attention_dense as dense

        return dense.dense_sample, dense.dense_sample_gradients
    if method == "fused":
        from fasseg_jax import deformable_attention_fused as fused

        return fused.fused_sample, fused.fused_sample_gradients
    return _gather_sample, _gather_sample_gradients


def _fastest_method() -> str:
    device = jax.devices()[0]
    if jax.device_count() > 1 and DATA not in jax.sharding.get_abstract_mesh().axis_names:
        return "gather"  # XLA divides no kernel among devices
    # "8.6" or the like of NVIDIA's; Triton compiles for 8.0 and later ones.
    capability = re.match(r"(\d+)\.\d+", getattr(device, "compute_capability", ""))
    if capability and int(capability[1]) >= 8:
        return "fused"
    return "dense" if device.platform == "tpu" else "gather"


def _gather_sample(values, locations, weights, shapes):
    rows, first_row = token_rows(values)

    def add_sample(total, sample):
        size, start, xy, weight = sample
        for corner in corners(xy, size):
            row = first_row + (start + corner.token) * values.shape[2]  # (B, Q, M)
            near = jnp.where(corner.inside, corner.near_x * corner.near_y * weight, 0)
            total += near[..., None] * rows.at[row].get(mode="promise_in_bounds")  # (B, Q, M, D)
        return total, None

    # A loop over the samples, not one expression: XLA would merge that with what follows into a loop that no longer
    # copies whole rows, twice as slow on a CPU, and takes longer to compile.
    total = jnp.zeros((*locations.shape[:3], values.shape[3]), jnp.float32)
    total, _ = jax.lax.scan(add_sample, total, _samples(locations, weights, shapes))
    return total.astype(values.dtype)


def _gather_sample_gradients(values, locations, weights, gradient, shapes):
    """Gradients of values, locations and weights, given that of the output (B, Q, M, D).

    A sample reads and adds to one long row of all its four pixels: XLA's scatters on a CPU cost by the row. Sums over
    channels are products with a constant, since XLA does not vectorise a sum along rows.
    """
    (b, _, m, d), gradient = values.shape, gradient.astype(jnp.float32)
    gradients = jnp.tile(gradient, 4)  # (B, Q, M, 4 * D)
    sum_channels = np.kron(np.eye(4), np.ones((d, 1))).astype(np.float32)  # (4 * D, 4)
    first_row = np.arange(b)[:, None, None], np.arange(m)

    def level_gradients(values, locations, weights, h, w):
        rows, add_up = jax.vjp(functools.partial(_corner_rows, h=h, w=w), values.astype(jnp.float32))

        x, y = locations.transpose(4, 3, 0, 1, 2)  # (B, Q, M, P, xy) -> (xy, P, B, Q, M)
        weight = weights.transpose(3, 0, 1, 2)  # (B, Q, M, P) -> (P, B, Q, M)
        x, y = x * w - 0.5, y * h - 0.5
        x0, y0 = jnp.floor(x), jnp.floor(y)
        inside = (x0 >= -1) & (x0 < w) & (y0 >= -1) & (y0 < h)  # (P, B, Q, M), at least one pixel
        column, line = (jnp.where(inside, start, -1).astype(jnp.int32) + 1 for start in (x0, y0))
        image, head = first_row
        row = ((image * (h + 1) + line) * (w + 1) + column) * m + head
        right, down = x - x0, y - y0
        near = jnp.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], axis=-1)
        near = jnp.where(inside[..., None], near * weight[..., None], 0)  # (P, B, Q, M, 4)

        # What comes into the loop is formed before it: within, XLA would form it anew for each channel.
        def add_sample(rows_gradient, sample):
            row, near = sample  # (B, Q, M), (B, Q, M, 4)
            products = (rows.at[row].get(mode="promise_in_bounds") * gradients).reshape(-1, 4 * d)
            products = jnp.matmul(products, sum_channels, precision="highest").reshape(*row.shape, 4)
            update = (near[..., None] * gradient[..., None, :]).reshape(*row.shape, 4 * d)
            return rows_gradient.at[row].add(update, mode="promise_in_bounds"), products

        rows_gradient, products = jax.lax.scan(add_sample, jnp.zeros_like(rows), (row, near))
        nw, ne, sw, se = jnp.moveaxis(jnp.where(inside[..., None], products, 0), -1, 0)  # (P, B, Q, M) each
        north, south = nw + right * (ne - nw), sw + right * (se - sw)
        x_gradient = weight * w * ((1 - down) * (ne - nw) + down * (se - sw))
        y_gradient = weight * h * (south - north)
        by_sample = jnp.stack([x_gradient, y_gradient], axis=-1), north + down * (south - north)
        return add_up(rows_gradient)[0], *(jnp.moveaxis(x, 0, 3) for x in by_sample)  # (B, Q, M, P, ...)

    results, start = [], 0
    for level, (h, w) in enumerate(shapes):
        part = values[:, start : start + h * w]
        results.append(level_gradients(part, locations[:, :, :, level], weights[:, :, :, level], h, w))
        start += h * w
    by_value, by_location, by_weight = zip(*results, strict=True)
    by_value = jnp.concatenate(by_value, axis=1).astype(values.dtype)
    return by_value, jnp.stack(by_location, axis=3), jnp.stack(by_weight, axis=3)


def _corner_rows(values: jax.Array, h: int, w: int) -> jax.Array:
    """The four pixels around each place between them, north-west first, zero outside: (B (h + 1) (w + 1) M, 4 D)."""
    b, _, m, d = values.shape
    padded = jnp.pad(values.reshape(b, h, w, m, d), ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    pixels = [padded[:, i : i + h + 1, j : j + w + 1] for i in (0, 1) for j in (0, 1)]
    return jnp.concatenate(pixels, axis=-1).reshape(-1, 4 * d)


def token_rows(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values as rows (B * N * M, D), row (image * N + token) * M + head; the first of each image and head (B, 1, M)."""
    b, n, m, d = values.shape
    first_row = jnp.arange(b, dtype=jnp.int32)[:, None, None] * (n * m) + jnp.arange(m, dtype=jnp.int32)
    return values.reshape(b * n * m, d), first_row


def _samples(locations: jax.Array, weights: jax.Array, shapes: Shapes) -> tuple:
    """What a loop over the levels * P samples takes: a level's (h, w), its first token, xy and weight of the sample."""
    b, q, m, _, points, _ = locations.shape
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # (levels * P, 2)
    starts = np.repeat(np.cumsum([0] + [h * w for h, w in shapes[:-1]]).astype(np.int32), points)  # (levels * P,)
    locations = locations.transpose(3, 4, 5, 0, 1, 2).reshape(-1, 2, b, q, m)  # (levels * P, xy, B, Q, M)
    return (sizes[:, 0], sizes[:, 1]), starts, locations, weights.transpose(3, 4, 0, 1, 2).reshape(-1, b, q, m)


class Corner(NamedTuple):
    """One of the four pixels around each of some samples: its token in the level, and how near it is."""

    inside: jax.Array  # the level
    token: jax.Array
    near_x: jax.Array
    near_y: jax.Array
    slope_x: int  # derivative of `near_x` by the sample's x in pixels
    slope_y: int


def corners(xy: tuple[jax.Array, jax.Array], size: tuple[jax.Array, jax.Array]) -> Iterator[Corner]:
    """Of samples at x and y in [0, 1], arrays of one shape, in a level of `size` (h, w)."""
    (x, y), (h, w) = xy, size
    x, y = x * w - 0.5, y * h - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)
    for column, near_x, slope_x in ((x0, x0 + 1 - x, -1), (x0 + 1, x - x0, 1)):
        for row, near_y, slope_y in ((y0, y0 + 1 - y, -1), (y0 + 1, y - y0, 1)):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            token = jnp.where(inside, row * w + column, 0).astype(jnp.int32)
            yield Corner(inside, token, near_x, near_y, slope_x, slope_y)


def compass_bias(num_heads: int, levels: int, points: int):
    """Initial offsets: point p of head m lies p + 1 pixels along the m-th compass direction (max-norm 1)."""

    def init(key, shape, dtype=jnp.float32):
        del key
        angle = 2 * np.pi * np.arange(num_heads) / num_heads
        direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        direction /= np.abs(direction).max(axis=-1, keepdims=True)
        steps = np.arange(1, points + 1)[:, None]
        offsets = np.broadcast_to((direction[:, None] * steps)[:, None], (num_heads, levels, points, 2))
        return jnp.asarray(offsets.reshape(shape), dtype)  # (M, levels, P, 2) -> (M * levels * P * 2,)

    return init


class DeformableAttention(nn.Module):
    """Each token gathers `num_points` samples per head and level around its own place.

    queries (B, N, C) decide offsets and weights, values (B, N, C) are sampled; both hold the tokens of all levels.
    """

    num_heads: int
    num_points: int
    method: str = "auto"  # of `deformable_sample`
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, values: jax.Array, shapes: Shapes) -> jax.Array:
        b, n, c = values.shape
        heads, levels, points = self.num_heads, len(shapes), self.num_points
        # Coordinates and softmax in float32: bfloat16 places a sample only to a thirty-second of a pixel at offset 8.
        offsets = nn.Dense(
            heads * levels * points * 2,
            dtype=jnp.float32,
            kernel_init=nn.initializers.zeros,
            bias_init=compass_bias(heads, levels, points),
            name="sampling_offsets",
        )(queries)
        logits = nn.Dense(
            heads * levels * points, dtype=jnp.float32, kernel_init=nn.initializers.zeros, name="attention_weights"
        )(queries)
        linear = lambda name: nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)

        offsets = offsets.reshape(b, n, heads, levels, points, 2)
        weights = jax.nn.softmax(logits.reshape(b, n, heads, levels * points))
        weights = weights.reshape(b, n, heads, levels, points)
        size = np.array([(w, h) for h, w in shapes], np.float32)  # (levels, 2), as offsets are in pixels of a level
        locations = reference_points(shapes)[:, None, None, None] + offsets / size[:, None]
        values = linear("value_proj")(values).reshape(b, n, heads, c // heads)
        sampled = deformable_sample(values, locations, weights, shapes, self.method)
        sampled = checkpoint_name(sampled.reshape(b, n, c), SAMPLED)  # (B, N, M, D) -> (B, N, C)
        return linear("output_proj")(sampled)
