"""Exact minimum-cost assignment of targets to queries, by shortest augmenting paths, compiled with the training step.

Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems
52(4), 2016: the algorithm adds one target after another, each along the cheapest path of reassignments that ends at a
free query.

Computes the same as `scipy.optimize.linear_sum_assignment`, with which the tests compare it. The difference: it runs on
the device, where SciPy would need every cost on the host in the middle of the training step.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fasseg_jax.ops import triton

__all__ = ["NON_FINITE_COST", "assign"]

NON_FINITE_COST = 1e5  # replaces NaN and infinity; its negative replaces minus infinity
LARGEST_COST = 1e30  # replaces greater costs, whose sums could overflow


@flax.struct.dataclass
class Assignment:
    """The best assignment of the targets added so far, and the prices that prove it.

    The reduced cost of a pair is its cost less the prices of target and query. It is zero for assigned pairs, and never
    negative.
    """

    query_of: Int[Array, "T"]  # each target's query, -1 for none
    target_of: Int[Array, "Q"]  # each query's target, T for none
    target_price: Float[Array, "Q"]  # the price of each query's target
    query_price: Float[Array, "Q"]


@flax.struct.dataclass
class Search:
    """The state of Dijkstra's search for one target's path; a distance is the sum of reduced costs along a path."""

    distance: Float[Array, "Q"]  # the shortest found to each query
    visited: Bool[Array, "Q"]  # queries whose distance is final
    previous: Int[Array, "Q"]  # the target before each query on its shortest path
    query: Int[Array, ""]  # the latest query visited
    target: Int[Array, ""]  # its target, whose edges the search follows next; T for none: the path ends here
    offset: Float[Array, ""]  # the distance to that target, less its price


def assign(cost: Float[Array, "Q T"], num_targets: Int[Array, ""]) -> Int[Array, "T"]:
    """Assign each of the first `num_targets` targets a query of its own so that the sum of the costs is minimal.

    The work grows with `num_targets`, not with T, and under `jax.vmap` with the largest `num_targets`. On an NVIDIA GPU
    one kernel solves all problems, each by a program of its own, because loops of small kernels are launch-bound. NaN
    and infinite costs count as `NON_FINITE_COST`, minus infinity as its negative, so that every input ends in a valid
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
    return jax.lax.platform_dependent(cost, num_targets, **by_kernel, default=assign_by_loops)


def assign_by_loops(cost: Float[Array, "T Q"], num_targets: Int[Array, ""]) -> Int[Array, "T"]:
    """`assign_rows` as XLA's loops."""

    def row(target):
        return cost[target]

    def element(x, index):
        return x[index]

    return assign_rows(row, element, cost.shape, num_targets)


def assign_in_a_kernel(
    cost: Float[Array, "T Q"], num_targets: Int[Array, ""], interpret: bool = False
) -> Int[Array, "T"]:
    """`assign_rows` as a Pallas kernel, which Triton compiles for a GPU."""
    # Pallas takes a third of a second to import.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as pltriton

    max_targets, num_queries = cost.shape
    t, q = map(pl.next_power_of_2, (max_targets, num_queries))  # Triton has no other lengths
    cost = jnp.pad(cost, ((0, 0), (0, q - num_queries)), constant_values=jnp.inf)  # never the nearest

    def element(x, index):  # registers cannot be indexed
        return jnp.where(jnp.arange(x.size) == index, x, 0).sum(dtype=x.dtype)

    def kernel(cost, num_targets, out):
        def row(target):
            return cost[target, :]

        out[...] = assign_rows(row, element, (t, q), num_targets[0])

    out = jax.ShapeDtypeStruct((t,), jnp.int32)
    one_warp = pltriton.CompilerParams(num_warps=1)
    call = pl.pallas_call(kernel, out_shape=out, compiler_params=one_warp, interpret=interpret, name="assign")
    return call(cost, num_targets[None])[:max_targets]


def assign_rows(
    row: Callable, element: Callable, shape: tuple[int, ...], num_targets: Int[Array, ""]
) -> Int[Array, "T"]:
    """`assign` for costs of `shape` (T, Q) that are finite or infinity.

    `row(target)` returns the costs (Q,) of a target, `element(x, index)` one element of x (N,).
    """
    max_targets, num_queries = shape

    def add_target(state):
        new, assignment = state
        search = shortest_path(row, element, new, max_targets, assignment)
        return new + 1, augment(search, element, new, assignment)

    start = Assignment(
        query_of=jnp.full(max_targets, -1, jnp.int32),
        target_of=jnp.full(num_queries, max_targets, jnp.int32),
        target_price=jnp.zeros(num_queries, jnp.float32),
        query_price=jnp.zeros(num_queries, jnp.float32),
    )
    with jax.named_scope("over_targets_by_1"):  # benchmarks look for this name
        _, assignment = jax.lax.while_loop(lambda state: state[0] < num_targets, add_target, (jnp.int32(0), start))
    return assignment.query_of


def shortest_path(
    row: Callable, element: Callable, new: Int[Array, ""], max_targets: int, assignment: Assignment
) -> Search:
    """The cheapest path, in reduced costs, from target `new` to a query without a target."""
    num_queries = assignment.target_of.size
    queries = jnp.arange(num_queries, dtype=jnp.float32)  # XLA for CPUs vectorizes the minimum of floats only

    def visit_nearest(s: Search) -> Search:
        through = s.offset + row(s.target) - assignment.query_price  # (Q,)
        closer = ~s.visited & (through < s.distance)
        distance = jnp.where(closer, through, s.distance)
        open_distance = jnp.where(s.visited, jnp.inf, distance)
        length = open_distance.min()
        # The first of the nearest; argmin finds it several times more slowly on a CPU.
        nearest_float = jnp.where(open_distance == length, queries, num_queries - 1).min()
        visited = s.visited | (queries == nearest_float)
        nearest = nearest_float.astype(jnp.int32)
        return Search(
            distance=distance,
            visited=visited,
            previous=jnp.where(closer, s.target, s.previous),
            query=nearest,
            target=element(assignment.target_of, nearest),
            offset=length - element(assignment.target_price, nearest),
        )

    start = Search(
        distance=jnp.full(num_queries, jnp.inf, jnp.float32),
        visited=jnp.zeros(num_queries, bool),
        previous=jnp.full(num_queries, new, jnp.int32),
        query=jnp.int32(-1),
        target=new,
        offset=jnp.float32(0),
    )
    return jax.lax.while_loop(lambda s: s.target < max_targets, visit_nearest, start)


def augment(search: Search, element: Callable, new: Int[Array, ""], assignment: Assignment) -> Assignment:
    """Add target `new`: the targets along the path move one query on, from its end back to `new`."""
    # Prices change such that no reduced cost is negative and those of assigned pairs are zero.
    length = element(search.distance, search.query)
    rise = jnp.where(search.visited, length - search.distance, 0)
    assignment = dataclasses.replace(
        assignment, target_price=assignment.target_price + rise, query_price=assignment.query_price - rise
    )

    def move(state):
        query, a, _ = state
        target = element(search.previous, query)
        previous_query = element(a.query_of, target)  # -1 for `new`
        price = jnp.where(target == new, length, element(a.target_price, previous_query))
        # Comparisons, because XLA for CPUs copies the whole array that a scatter changes.
        here = jnp.arange(a.target_of.size) == query
        a = dataclasses.replace(
            a,
            query_of=jnp.where(jnp.arange(a.query_of.size) == target, query, a.query_of),
            target_of=jnp.where(here, target, a.target_of),
            target_price=jnp.where(here, price, a.target_price),
        )
        return previous_query, a, target == new

    start = search.query, assignment, search.query < 0
    _, assignment, _ = jax.lax.while_loop(lambda state: ~state[2], move, start)
    return assignment
