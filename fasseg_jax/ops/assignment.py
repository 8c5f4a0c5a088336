"""Exact minimum-cost assignment of targets to queries, by shortest augmenting paths, compiled with the training step.

Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems
52(4), 2016: targets are added one after another, each along the cheapest path of re-assignments that ends at a free
query.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

__all__ = ["NON_FINITE_COST", "assign"]

NON_FINITE_COST = 1e5  # stands for NaN and infinity, its negative for minus infinity
LARGEST_COST = 1e30  # greater ones, which could overflow in sums, count as this


@flax.struct.dataclass
class Assignment:
    """The best one of the targets added so far, and the prices that prove it.

    Costs less the prices of target and query are zero for assigned pairs, and nowhere negative.
    """

    query_of: jax.Array  # (T,) of each target, -1 for none
    target_of: jax.Array  # (Q,) of each query, T for none
    target_price: jax.Array  # (Q,) of each query's target
    query_price: jax.Array  # (Q,)


@flax.struct.dataclass
class Search:
    """The search for one target's path, Dijkstra's over queries; distances are sums of reduced costs along it."""

    distance: jax.Array  # (Q,) least found to each query
    visited: jax.Array  # (Q,) bool, queries whose distance is final
    previous: jax.Array  # (Q,) the target before each query on its shortest path
    query: jax.Array  # () the latest one visited
    target: jax.Array  # () that it has, whose edges are followed next; T for none: the path ends here
    offset: jax.Array  # () the distance to that target, less its price


def assign(cost: jax.Array, num_targets: jax.Array) -> jax.Array:
    """Assigns each of the first `num_targets` targets a query of its own so that the sum of the costs is least.

    The work grows with `num_targets`, not with T; under `jax.vmap` with the largest of them, but on an NVIDIA GPU,
    where a program of one kernel solves each problem: loops of many small ones would take longer to start than to run.
    NaN and infinite costs count as `NON_FINITE_COST`, minus infinity as its negative, so that every input ends in a
    valid assignment.

    Args:
      cost: (Q, T) float32, T <= Q.
      num_targets: () int32, at most T; the columns beyond are padding and may hold anything.

    Returns:
      (T,) int32, the query of each target, -1 for padding.

    Raises:
      ValueError: T > Q.
    """
    num_queries, max_targets = cost.shape
    if max_targets > num_queries:
        raise ValueError(f"{max_targets} targets cannot each have one of {num_queries} queries")
    cost = jnp.nan_to_num(cost.T, nan=NON_FINITE_COST, posinf=NON_FINITE_COST, neginf=-NON_FINITE_COST)
    cost = jnp.clip(cost, -LARGEST_COST, LARGEST_COST)  # (T, Q)
    # Of the same optimum, as every target is assigned; small numbers lose less in the float32 sums that follow.
    cost -= cost.min(axis=1, keepdims=True)
    num_targets = jnp.asarray(num_targets, jnp.int32)

    def by_loops(cost, num_targets):
        return assign_rows(lambda target: cost[target], lambda x, place: x[place], cost.shape, num_targets)

    return jax.lax.platform_dependent(cost, num_targets, cuda=assign_in_a_kernel, default=by_loops)


def assign_in_a_kernel(cost: jax.Array, num_targets: jax.Array, interpret: bool = False) -> jax.Array:
    """`assign_rows` of costs (T, Q) as a Pallas kernel, which Triton compiles for a GPU."""
    # They take a third of a second to load.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as pltriton

    max_targets, num_queries = cost.shape
    t, q = map(pl.next_power_of_2, (max_targets, num_queries))  # Triton knows no other lengths
    cost = jnp.pad(cost, ((0, 0), (0, q - num_queries)), constant_values=jnp.inf)  # never the nearest

    def at(x, place):  # registers cannot be indexed
        return jnp.where(jnp.arange(x.size) == place, x, 0).sum(dtype=x.dtype)

    def kernel(cost, num_targets, out):
        out[...] = assign_rows(lambda target: cost[target, :], at, (t, q), num_targets[0])

    out = jax.ShapeDtypeStruct((t,), jnp.int32)
    one_warp = pltriton.CompilerParams(num_warps=1)
    call = pl.pallas_call(kernel, out_shape=out, compiler_params=one_warp, interpret=interpret, name="assign")
    return call(cost, num_targets[None])[:max_targets]


def assign_rows(row: Callable, at: Callable, shape: tuple[int, int], num_targets: jax.Array) -> jax.Array:
    """`assign` of costs of `shape` (T, Q), finite or infinite.

    `row(target)` is to give those of a target, (Q,), and `at(x, place)` one element of x (N,).
    """
    max_targets, num_queries = shape

    def add_target(state):
        new, assignment = state
        search = shortest_path(row, at, new, max_targets, assignment)
        return new + 1, augment(search, at, new, assignment)

    start = Assignment(
        query_of=jnp.full(max_targets, -1, jnp.int32),
        target_of=jnp.full(num_queries, max_targets, jnp.int32),
        target_price=jnp.zeros(num_queries, jnp.float32),
        query_price=jnp.zeros(num_queries, jnp.float32),
    )
    return jax.lax.while_loop(lambda state: state[0] < num_targets, add_target, (jnp.int32(0), start))[1].query_of


def shortest_path(row: Callable, at: Callable, new: jax.Array, max_targets: int, assignment: Assignment) -> Search:
    """The cheapest path, in reduced costs, from target `new` to a query without a target."""
    num_queries = assignment.target_of.size
    queries = jnp.arange(num_queries, dtype=jnp.float32)  # XLA for CPUs vectorises the minimum of floats alone

    def visit_nearest(s: Search) -> Search:
        through = s.offset + row(s.target) - assignment.query_price  # (Q,)
        closer = ~s.visited & (through < s.distance)
        distance = jnp.where(closer, through, s.distance)
        open_distance = jnp.where(s.visited, jnp.inf, distance)
        length = open_distance.min()
        # The first of the nearest, which argmin would find several times more slowly on a CPU.
        nearest = jnp.where(open_distance == length, queries, num_queries - 1).min()
        visited = s.visited | (queries == nearest)
        nearest = nearest.astype(jnp.int32)
        return Search(
            distance=distance,
            visited=visited,
            previous=jnp.where(closer, s.target, s.previous),
            query=nearest,
            target=at(assignment.target_of, nearest),
            offset=length - at(assignment.target_price, nearest),
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


def augment(search: Search, at: Callable, new: jax.Array, assignment: Assignment) -> Assignment:
    """The assignment with target `new`: the targets along the path move one query on, from its end back to `new`."""
    # Prices rise such that no reduced cost is negative and those along the paths in use are zero.
    length = at(search.distance, search.query)
    rise = jnp.where(search.visited, length - search.distance, 0)
    assignment = assignment.replace(
        target_price=assignment.target_price + rise, query_price=assignment.query_price - rise
    )

    def move(state):
        query, a, _ = state
        target = at(search.previous, query)
        left = at(a.query_of, target)  # the query that it had, -1 for `new`
        price = jnp.where(target == new, length, at(a.target_price, left))
        # By comparisons: XLA for CPUs copies what a scatter changes.
        here = jnp.arange(a.target_of.size) == query
        a = a.replace(
            query_of=jnp.where(jnp.arange(a.query_of.size) == target, query, a.query_of),
            target_of=jnp.where(here, target, a.target_of),
            target_price=jnp.where(here, price, a.target_price),
        )
        return left, a, target == new

    start = search.query, assignment, search.query < 0
    return jax.lax.while_loop(lambda state: ~state[2], move, start)[1]
