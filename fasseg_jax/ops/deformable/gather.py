"""Deformable sampling as gathers of rows, for CPUs and whatever has no kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.ops.deformable.geometry import Shapes, corners, token_rows


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


def _samples(locations: jax.Array, weights: jax.Array, shapes: Shapes) -> tuple:
    """What a loop over the levels * P samples takes: a level's (h, w), its first token, xy and weight of the sample."""
    b, q, m, _, points, _ = locations.shape
    sizes = np.repeat(np.array(shapes, np.int32), points, axis=0)  # (levels * P, 2)
    starts = np.repeat(np.cumsum([0] + [h * w for h, w in shapes[:-1]]).astype(np.int32), points)  # (levels * P,)
    locations = locations.transpose(3, 4, 5, 0, 1, 2).reshape(-1, 2, b, q, m)  # (levels * P, xy, B, Q, M)
    return (sizes[:, 0], sizes[:, 1]), starts, locations, weights.transpose(3, 4, 0, 1, 2).reshape(-1, b, q, m)
