"""The algorithm of the assignment: shortest augmenting paths.

Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems
52(4), 2016: the algorithm adds one target after another, each along the cheapest path of reassignments that ends at a
free query.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["assign_in_registers", "assign_rows"]


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
    visited: Int[Array, "Q"]  # 1 for queries whose distance is final; a TPU's loop cannot carry booleans
    previous: Int[Array, "Q"]  # the target before each query on its shortest path
    query: Int[Array, ""]  # the latest query visited
    target: Int[Array, ""]  # its target, whose edges the search follows next; T for none: the path ends here
    offset: Float[Array, ""]  # the distance to that target, less its price


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


def assign_in_registers(cost: Any, shape: tuple[int, ...], num_targets: Int[Array, ""]) -> Int[Array, "T"]:
    """`assign_rows` within a Pallas kernel, of its costs `cost` (at least `num_targets`, Q)."""

    def row(target):
        return cost[target, :]

    def element(x, index):  # registers cannot be indexed
        return jnp.where(jnp.arange(x.size) == index, x, 0).sum(dtype=x.dtype)

    return assign_rows(row, element, shape, num_targets)


def shortest_path(
    row: Callable, element: Callable, new: Int[Array, ""], max_targets: int, assignment: Assignment
) -> Search:
    """The cheapest path, in reduced costs, from target `new` to a query without a target."""
    num_queries = assignment.target_of.size
    queries = jnp.arange(num_queries).astype(jnp.float32)  # XLA for CPUs vectorizes the minimum of floats only

    def visit_nearest(s: Search) -> Search:
        through = s.offset + row(s.target) - assignment.query_price  # (Q,)
        closer = (s.visited == 0) & (through < s.distance)
        distance = jnp.where(closer, through, s.distance)
        open_distance = jnp.where(s.visited == 0, distance, jnp.inf)
        length = open_distance.min()
        # The first of the nearest; argmin finds it several times more slowly on a CPU.
        nearest_float = jnp.where(open_distance == length, queries, num_queries - 1).min()
        visited = jnp.where(queries == nearest_float, 1, s.visited)
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
        visited=jnp.zeros(num_queries, jnp.int32),
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
    rise = jnp.where(search.visited == 0, 0, length - search.distance)
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
