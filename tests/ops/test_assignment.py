"""The assignment against SciPy's: by loops, and by the kernels for GPUs and TPUs, emulated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from fasseg_jax.ops import assignment
from fasseg_jax.ops.assignment import NON_FINITE_COST, assign
from tests.helpers.lowering import AMPERE, TURING, have_devices, lowered_text, remove_triton


@pytest.fixture(params=["loops", "kernel for GPUs", "kernel for TPUs"])
def assign_all(request, monkeypatch):
    """Assigns problems of costs (N, Q, T) and numbers of targets (N,)."""
    if request.param == "kernel for GPUs":
        monkeypatch.setattr(
            assignment, "assign_by_loops", functools.partial(assignment.assign_in_a_kernel, interpret=True)
        )
    elif request.param == "kernel for TPUs":  # emulates itself where there is no TPU
        monkeypatch.setattr(assignment, "assign_by_loops", assignment.assign_on_tpu)
    return jax.jit(jax.vmap(lambda *problem: assign(*problem)))  # a new function, so that JAX traces it again


@pytest.fixture
def check(assign_all):
    return functools.partial(check_assignments, assign_all)


def check_assignments(assign_all, costs: np.ndarray, num_targets: np.ndarray) -> np.ndarray:
    """Every problem of (N, Q, T) gets a valid assignment, as cheap as SciPy's; returns the queries (N, T)."""
    queries = np.asarray(assign_all(costs.astype(np.float32), num_targets.astype(np.int32)))
    for cost, n, query in zip(costs.astype(np.float32), num_targets, queries, strict=True):
        assert (query[n:] == -1).all()
        assert ((query[:n] >= 0) & (query[:n] < cost.shape[0])).all()
        assert len(set(query[:n])) == n
        finite = np.nan_to_num(cost[:, :n], nan=NON_FINITE_COST, posinf=NON_FINITE_COST, neginf=-NON_FINITE_COST)
        finite = finite.astype(np.float64)
        best = finite[linear_sum_assignment(finite)].sum()
        found = finite[query[:n], np.arange(n)].sum()
        assert found <= best + 1e-5 * max(1, np.abs(finite).max(initial=0))
    return queries


@pytest.mark.slow
@pytest.mark.parametrize(("num_queries", "max_targets"), [(1, 1), (5, 5), (7, 3), (30, 30), (100, 40), (64, 64)])
def test_random_problems_of_every_size(check, num_queries, max_targets):
    rng = np.random.default_rng(0)
    num_targets = rng.integers(0, max_targets + 1, 40)
    num_targets[:2] = 0, max_targets
    check(rng.normal(size=(40, num_queries, max_targets)), num_targets)


# Costs on which greedy choices fail, by (rng, shape (N, Q, T)).
HARD_COSTS = {
    "ties": lambda rng, shape: rng.integers(0, 3, shape),
    "all equal": lambda rng, shape: np.ones(shape),
    "integers": lambda rng, shape: rng.integers(-50, 50, shape),
    "shared preferences": lambda rng, shape: 5 * rng.random((*shape[:2], 1)) + rng.random(shape),
    "strong conflict": lambda rng, shape: (
        np.outer(np.arange(shape[1]), np.arange(shape[2])) / 9 + 0.1 * rng.random(shape)
    ),
    "large offsets": lambda rng, shape: 1000 * rng.random((shape[0], 1, shape[2])) + rng.integers(0, 9, shape),
}


@pytest.mark.parametrize("kind", HARD_COSTS)
def test_hard_costs(check, kind):
    costs = HARD_COSTS[kind](np.random.default_rng(0), (12, 25, 25))
    check(costs, np.array([25, 24, 20, 13, 12, 9, 7, 4, 3, 2, 1, 0]))


def test_padding_does_not_matter(check, assign_all):
    costs = np.random.default_rng(0).random((3, 12, 6)).astype(np.float32)
    num_targets = np.array([4, 0, 5])
    expected = check(costs, num_targets)
    for fill in (np.nan, -np.inf, -1e30):
        for problem, n in enumerate(num_targets):
            costs[problem, :, n:] = fill
        np.testing.assert_array_equal(assign_all(costs, num_targets), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_costs_leave_the_others_matched_optimally(check, value):
    rng = np.random.default_rng(1)
    costs = rng.random((20, 15, 10))
    costs[rng.random(costs.shape) < 0.2] = value
    costs[0, :, 3] = value  # a target that no query suits
    costs[1, 4] = value  # a query that suits no target
    costs[2] = value
    costs[3, :8] = value  # fewer usable queries than targets
    queries = check(costs, np.full(20, 10))
    if value != -np.inf:
        assert 4 not in queries[1]


def test_costs_near_the_largest_number_are_assigned(assign_all):
    costs = np.full((2, 6, 6), 3e38, np.float32)
    costs[1] *= np.where(np.random.default_rng(0).random((6, 6)) < 0.5, -1, 1)
    for query in np.asarray(assign_all(costs, np.array([6, 6]))):
        assert sorted(query) == list(range(6))


def test_more_targets_than_queries_are_refused():
    with pytest.raises(ValueError, match="5 targets cannot each have one of 4 queries"):
        assign(jnp.zeros((4, 5)), jnp.int32(2))


@pytest.mark.parametrize(("platform", "kernels"), [("cuda", 1), ("rocm", 0), ("tpu", 1), ("cpu", 0)])
def test_nvidia_gpus_and_tpus_get_one_kernel_for_all_problems(platform, kernels):
    shapes = jax.ShapeDtypeStruct((14, 100, 40), jnp.float32), jax.ShapeDtypeStruct((14,), jnp.int32)
    text = lowered_text(jax.vmap(lambda *problem: assign(*problem)), *shapes, platform=platform)
    assert text.count("__gpu$xla.gpu.triton") + text.count("tpu_custom_call") == kernels
    assert ("stablehlo.while" in text) == (not kernels)


@pytest.mark.parametrize(("devices", "has_triton"), [([TURING], True), ([AMPERE, TURING], True), ([AMPERE], False)])
def test_gpus_for_which_triton_compiles_nothing_get_loops(monkeypatch, devices, has_triton):
    have_devices(monkeypatch, devices)
    if not has_triton:
        remove_triton(monkeypatch)
    shapes = jax.ShapeDtypeStruct((30, 20), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    text = lowered_text(assign, *shapes, platform="cuda")
    assert "triton" not in text and "stablehlo.while" in text
