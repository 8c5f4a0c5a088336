"""Time of the exact assignment on the device, beside SciPy's on the host and optax's.

    python benchmarks/assignment.py

There are as many problems as in a training step: 14 predictions of 16 images, with 100 queries and 4 to 30 targets of
at most 40. Optax's function takes no number of targets. With padding costs of zero it assigns the real targets alike.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from fasseg_jax.ops.assignment import assign

PROBLEMS, QUERIES, MAX_TARGETS = 14 * 16, 100, 40


def best_seconds(function, *arguments, repeats: int = 5) -> float:
    """The least wall time of a call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def by_scipy(costs: np.ndarray, num_targets: np.ndarray) -> float:
    """The sum of the optimal costs."""
    problems = [cost[:, :n] for cost, n in zip(costs, num_targets, strict=True)]
    return sum(cost[linear_sum_assignment(cost)].sum(dtype=np.float64) for cost in problems)


def main() -> None:
    """Print a table."""
    rng = np.random.default_rng(0)
    num_targets = rng.integers(4, 31, PROBLEMS).astype(np.int32)
    shape = (PROBLEMS, QUERIES, MAX_TARGETS)
    cases = {
        "uniform costs": rng.random(shape),
        "shared preferences": 5 * rng.random((PROBLEMS, QUERIES, 1)) + rng.random(shape),
        "strong conflict": np.outer(np.arange(QUERIES), 1 + np.arange(MAX_TARGETS)) / 10 + 0.1 * rng.random(shape),
    }
    on_device = jax.jit(jax.vmap(assign))
    by_optax = jax.jit(jax.vmap(optax.assignment.hungarian_algorithm))
    real = np.arange(MAX_TARGETS) < num_targets[:, None]  # (problems, T)

    print(f"{PROBLEMS} problems on {jax.devices()[0].device_kind}, milliseconds")
    print(f"{'':20} {'here':>8} {'scipy':>8} {'optax':>8}   excess over the optimum")
    for name, costs in cases.items():
        costs = costs.astype(np.float32)
        queries = np.asarray(on_device(costs, num_targets))
        problem, target = np.nonzero(real)
        found = costs[problem, queries[real], target].sum(dtype=np.float64)
        excess = found / by_scipy(costs, num_targets) - 1
        masked = jnp.where(real[:, None], costs, 0)
        here = best_seconds(on_device, costs, num_targets)
        scipy = best_seconds(by_scipy, costs, num_targets)
        optax_seconds = best_seconds(by_optax, masked, repeats=2)
        print(f"{name:20} {1e3 * here:8.1f} {1e3 * scipy:8.1f} {1e3 * optax_seconds:8.1f}   {excess:.0e}")


if __name__ == "__main__":
    main()
