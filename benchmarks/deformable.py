"""Time of deformable sampling, forward and with its derivative, beside PyTorch's `grid_sample`.

    pip install -e ".[torch]"
    python benchmarks/deformable.py --size 512x512 --batch 1 --output deformable.json

All sample the same values at the same locations, for all tokens of strides 32, 16, 8 with 8 heads of 32 channels and 4
points, and must agree. They run in turn. A kernel takes part where the device suits it; elsewhere Pallas would emulate
it.
"""

import json
import os
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional
from absl import app, flags
from rich.console import Console
from rich.table import Table

from fasseg_jax.models.layers.deformable_attention import reference_points
from fasseg_jax.ops.deformable.sampling import METHODS, deformable_sample

SIZE = flags.DEFINE_string("size", "512x512", "Height x width of the images, multiples of 32.")
BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")
ROUNDS = flags.DEFINE_integer("rounds", 10, "Timed runs of each.", lower_bound=1)
OFFSET = flags.DEFINE_float("offset", 3.0, "Standard deviation of the offsets, in pixels of each level.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

HEADS, CHANNELS, POINTS = 8, 32, 4


def grid_sample(values, locations, weights, shapes):
    """The same by `grid_sample`, level by level, as PyTorch programs do without a compiled operator."""
    b, _, m, d = values.shape
    q, points = locations.shape[1], locations.shape[4]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (levels, B * M, Q, P, 2)
    sizes = [h * w for h, w in shapes]
    samples = []
    for grid, level, (h, w) in zip(grids, values.split(sizes, dim=1), shapes, strict=True):
        level = level.permute(0, 2, 3, 1).reshape(b * m, d, h, w)
        samples.append(torch.nn.functional.grid_sample(level, grid, align_corners=False))  # (B * M, D, Q, P)
    weights = weights.permute(0, 2, 1, 3, 4).reshape(b * m, 1, q, len(shapes) * points)
    out = (torch.cat(samples, dim=-1) * weights).sum(dim=-1)  # (B * M, D, Q)
    return out.reshape(b, m, d, q).permute(0, 3, 1, 2)


def inputs(shapes):
    """Values, locations, weights and a cotangent of the output, float32."""
    rng = np.random.default_rng(0)
    b, n, levels = BATCH.value, sum(h * w for h, w in shapes), len(shapes)
    values = rng.standard_normal((b, n, HEADS, CHANNELS))
    offsets = rng.normal(0, OFFSET.value, (b, n, HEADS, levels, POINTS, 2))
    locations = reference_points(shapes)[:, None, None, None] + offsets / np.array([(w, h) for h, w in shapes])[:, None]
    weights = rng.dirichlet(np.ones(levels * POINTS), (b, n, HEADS)).reshape(b, n, HEADS, levels, POINTS)
    cotangent = rng.standard_normal((b, n, HEADS, CHANNELS))
    return [x.astype(np.float32) for x in (values, locations, weights, cotangent)]


def ours(arrays, shapes, method):
    """Functions of no argument: the forward pass, and both passes."""
    *leaves, cotangent = (jnp.asarray(x) for x in arrays)

    @jax.jit
    def sample(values, locations, weights):
        return deformable_sample(values, locations, weights, shapes, method)

    @jax.jit
    def sample_and_gradients(cotangent, *leaves):
        out, backward = jax.vjp(sample, *leaves)
        return out, *backward(cotangent)

    def forward():
        return [jax.block_until_ready(sample(*leaves))]

    def both():
        return jax.block_until_ready(sample_and_gradients(cotangent, *leaves))

    return forward, both


def theirs(arrays, shapes):
    """The same in PyTorch."""
    *leaves, cotangent = (torch.from_numpy(x) for x in arrays)

    def forward():
        with torch.inference_mode():
            return [grid_sample(*leaves, shapes)]

    def both():
        tensors = [x.detach().requires_grad_() for x in leaves]
        out = grid_sample(*tensors, shapes)
        return out.detach(), *torch.autograd.grad(out, tensors, cotangent)

    return forward, both


def main(_):
    """Measure and report."""
    height, width = map(int, SIZE.value.split("x"))
    shapes = tuple((height // stride, width // stride) for stride in (32, 16, 8))
    arrays = inputs(shapes)
    contenders = {"grid_sample": theirs(arrays, shapes)}
    for name, method in METHODS.items():
        if method.suits(jax.devices()[0]):
            contenders[name] = ours(arrays, shapes, name)

    expected = [np.asarray(x) for x in contenders["grid_sample"][1]()]
    for name, (forward, both) in contenders.items():
        for ours_, theirs_ in zip([*forward(), *both()], [expected[0], *expected], strict=True):
            scale = np.abs(theirs_).max()
            np.testing.assert_allclose(np.asarray(ours_) / scale, theirs_ / scale, atol=2e-5, err_msg=name)

    times = {name: ([], []) for name in contenders}
    for _ in range(ROUNDS.value):
        for name, functions in contenders.items():
            for function, seconds in zip(functions, times[name], strict=True):
                start = time.perf_counter()
                function()
                seconds.append(time.perf_counter() - start)

    cores = len(os.sched_getaffinity(0))
    title = f"Deformable attention, {SIZE.value}, batch {BATCH.value}, float32, {jax.default_backend()}, {cores} cores"
    table = Table("", "forward, ms", "forward and backward, ms", "min – max, ms", title=title)
    result = {"device": jax.devices()[0].device_kind, "cores": cores, "size": SIZE.value, "batch": BATCH.value}
    for name, (forward, both) in times.items():
        result[name] = {"forward_s": forward, "both_s": both}
        milliseconds = [f"{1e3 * statistics.median(each):.0f}" for each in (forward, both)]
        table.add_row(name, *milliseconds, f"{1e3 * min(both):.0f} – {1e3 * max(both):.0f}")
    Console().print(table)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
