"""Exact minimum-cost assignment of targets to queries, by shortest augmenting paths, compiled with the training step.

Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic Systems
52(4), 2016: targets are added one after another, each along the cheapest path of re-assignments that ends at a free
query.
"""

import flax.struct
import jax
import jax.numpy as jnp

__all__ = ["NON_FINITE_COST", "assign"]

NON_FINITE_COST = 1e5  # stands for NaN and infinity, its negative for minus infinity
LARGEST_COST = 1e30  # greater ones, which could overflow in sums, count as this


@flax.struct.dataclass
class Search:
    """The search for one target's path, Dijkstra's over queries."""

    tentative: jax.Array  # (Q,) least distance found from the new target to each query; infinity for visited ones
    distance: jax.Array  # (Q,) from the new target to each visited query; infinity for others
    previous: jax.Array  # (Q,) the target before each query on its shortest path
    target: jax.Array  # () the target whose edges are followed next
    length: jax.Array  # () of the path to that target
    end: jax.Array  # () the free query that the path ends at, -1 until one is found
    steps: jax.Array  # ()


def assign(cost: jax.Array, num_targets: jax.Array) -> jax.Array:
    """Assigns each of the first `num_targets` targets a query of its own so that the sum of the costs is least.

    The work grows with `num_targets`, not with T; under `jax.vmap` with the largest of them. NaN and infinite costs
    count as `NON_FINITE_COST`, minus infinity as its negative, so that every input ends in a valid assignment.

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

    def add_target(state):
        new, query_of, target_of, target_price, query_price = state
        search = shortest_path(cost, new, target_of, target_price, query_price)
        # Prices rise such that no reduced cost is negative and those along the paths in use are zero.
        rise = jnp.maximum(search.length - search.distance, 0)  # (Q,), 0 for queries that were not visited
        target_price += jnp.where(query_of >= 0, rise[query_of], 0).at[new].set(search.length)  # (T,)
        query_of, target_of = augment(search, new, query_of, target_of)
        return new + 1, query_of, target_of, target_price, query_price - rise

    start = (
        jnp.int32(0),
        jnp.full(max_targets, -1, jnp.int32),
        jnp.full(num_queries, max_targets, jnp.int32),  # T: of none
        jnp.zeros(max_targets, cost.dtype),
        jnp.zeros(num_queries, cost.dtype),
    )
    return jax.lax.while_loop(lambda state: state[0] < num_targets, add_target, start)[1]


def shortest_path(
    cost: jax.Array, new: jax.Array, target_of: jax.Array, target_price: jax.Array, query_price: jax.Array
) -> Search:
    """The cheapest path, in reduced costs, from target `new` to a query without a target."""
    max_targets, num_queries = cost.shape
    queries = jnp.arange(num_queries, dtype=jnp.float32)  # XLA for CPUs vectorises the minimum of floats alone

    def visit_nearest(s: Search) -> Search:
        through = s.length + cost[s.target] - target_price[s.target] - query_price  # (Q,)
        closer = (s.distance == jnp.inf) & (through < s.tentative)
        tentative = jnp.where(closer, through, s.tentative)
        length = tentative.min()
        # The first of the nearest, which argmin would find several times more slowly on a CPU.
        nearest = jnp.where(tentative == length, queries, num_queries - 1).min()
        is_nearest = queries == nearest
        nearest = nearest.astype(jnp.int32)
        next_target = target_of[nearest]
        free = next_target == max_targets
        return Search(
            tentative=jnp.where(is_nearest, jnp.inf, tentative),
            distance=jnp.where(is_nearest, length, s.distance),
            previous=jnp.where(closer, s.target, s.previous),
            target=jnp.where(free, s.target, next_target),
            length=length,
            end=jnp.where(free, nearest, s.end),
            steps=s.steps + 1,
        )

    start = Search(
        tentative=jnp.full(num_queries, jnp.inf, cost.dtype),
        distance=jnp.full(num_queries, jnp.inf, cost.dtype),
        previous=jnp.full(num_queries, new, jnp.int32),
        target=new,
        length=jnp.zeros((), cost.dtype),
        end=jnp.int32(-1),
        steps=jnp.int32(0),
    )
    # Every step visits another query, and only `new` of them have a target.
    return jax.lax.while_loop(lambda s: (s.end < 0) & (s.steps <= new), visit_nearest, start)


def augment(search: Search, new: jax.Array, query_of: jax.Array, target_of: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves the targets along the path one query on, from its end back to target `new`."""

    def move(state):
        query, query_of, target_of, _ = state
        target = search.previous[query]
        # By comparisons: XLA for CPUs copies what a scatter changes.
        moved_queries = jnp.where(jnp.arange(query_of.size) == target, query, query_of)
        moved_targets = jnp.where(jnp.arange(target_of.size) == query, target, target_of)
        return query_of[target], moved_queries, moved_targets, target == new

    start = (search.end, query_of, target_of, search.end < 0)
    _, query_of, target_of, _ = jax.lax.while_loop(lambda state: ~state[3], move, start)
    return query_of, target_of
