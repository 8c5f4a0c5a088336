"""Exact minimum-cost assignment of targets to queries, compiled with the training step.

Computes the same as `scipy.optimize.linear_sum_assignment`, with which the tests compare it. The difference: it runs on
the device, where SciPy would need every cost on the host in the middle of the training step. `augmenting_paths.py` is
the algorithm.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fasseg_jax.ops import triton
from fasseg_jax.ops.augmenting_paths import assign_in_registers, assign_rows

__all__ = ["NON_FINITE_COST", "assign"]

NON_FINITE_COST = 1e5  # replaces NaN and infinity; its negative replaces minus infinity
LARGEST_COST = 1e30  # replaces greater costs, whose sums could overflow


def assign(cost: Float[Array, "Q T"], num_targets: Int[Array, ""]) -> Int[Array, "T"]:
    """Assign each of the first `num_targets` targets a query of its own so that the sum of the costs is minimal.

    The work grows with `num_targets`, not with T, and under `jax.vmap` with the largest `num_targets`. On NVIDIA GPUs
    and on TPUs one kernel solves all problems: loops of small operations would mostly wait between these. NaN and
    infinite costs count as `NON_FINITE_COST`, minus infinity as its negative, so that every input ends in a valid
    assignment.

    Args:
      cost: float32, T <= Q.
      num_targets: at most T; later columns are padding and may hold anything.

    Returns:
      The query of each target, -1 for padding.

    Raises:
      ValueError: T > Q.
    """
    num_queries, max_targets = cost.shape
    if max_targets > num_queries:
        raise ValueError(f"{max_targets} targets cannot each have one of {num_queries} queries")
    cost = jnp.nan_to_num(cost.T, nan=NON_FINITE_COST, posinf=NON_FINITE_COST, neginf=-NON_FINITE_COST)
    cost = jnp.clip(cost, -LARGEST_COST, LARGEST_COST)  # (T, Q)
    # This keeps the optimum, because every target is assigned; small numbers lose less in the float32 sums that follow.
    cost -= cost.min(axis=1, keepdims=True)
    num_targets = num_targets.astype(jnp.int32)
    by_kernel = {"cuda": assign_in_a_kernel} if triton.compiles_here() else {}
    return jax.lax.platform_dependent(cost, num_targets, tpu=assign_on_tpu, **by_kernel, default=assign_by_loops)


def assign_by_loops(cost: Float[Array, "T Q"], num_targets: Int[Array, ""]) -> Int[Array, "T"]:
    """`assign_rows` as XLA's loops."""

    def row(target):
        return cost[target]

    def element(x, index):
        return x[index]

    return assign_rows(row, element, cost.shape, num_targets)


def assign_on_tpu(cost: Float[Array, "T Q"], num_targets: Int[Array, ""]) -> Int[Array, "T"]:
    """`assign_in_registers` as a Pallas kernel for TPUs."""
    from fasseg_jax.ops.assignment_tpu import assign_in_a_kernel  # Pallas takes a third of a second to import

    return assign_in_a_kernel(cost, num_targets)


def assign_in_a_kernel(
    cost: Float[Array, "T Q"], num_targets: Int[Array, ""], interpret: bool = False
) -> Int[Array, "T"]:
    """`assign_in_registers` as a Pallas kernel, which Triton compiles for a GPU."""
    # Pallas takes a third of a second to import.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as pltriton

    max_targets, num_queries = cost.shape
    t, q = map(pl.next_power_of_2, (max_targets, num_queries))  # Triton has no other lengths
    cost = jnp.pad(cost, ((0, 0), (0, q - num_queries)), constant_values=jnp.inf)  # never the nearest

    def kernel(cost, num_targets, out):
        out[...] = assign_in_registers(cost, (t, q), num_targets[0])

    out = jax.ShapeDtypeStruct((t,), jnp.int32)
    one_warp = pltriton.CompilerParams(num_warps=1)
    call = pl.pallas_call(kernel, out_shape=out, compiler_params=one_warp, interpret=interpret, name="assign")
    return call(cost, num_targets[None])[:max_targets]
