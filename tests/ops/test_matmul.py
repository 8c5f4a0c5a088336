"""Products in bfloat16: as exact as one rounding allows, in the instructions of each device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.ops.matmul import matmul
from tests.helpers.lowering import lowered_text

RNG = np.random.default_rng(0)
X, KERNEL, GRAD = (
    RNG.standard_normal(shape).astype(jnp.bfloat16) for shape in ((2, 3, 4, 64), (64, 24), (2, 3, 4, 24))
)


def value_and_gradients(x, kernel, grad):
    y, derivative = jax.vjp(matmul, x, kernel)
    return y, *derivative(grad)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)])
def test_value_and_gradients(dtype, rtol):
    """Against NumPy in float64; gradients, too, are rounded once."""
    x, kernel, grad = (a.astype(np.float64) for a in (X, KERNEL, GRAD))
    exact = x @ kernel, grad @ kernel.T, np.einsum("abci,abco->io", x, grad)
    inputs = [jnp.asarray(a, dtype) for a in (X, KERNEL, GRAD)]
    with jax.default_matmul_precision("highest"):
        found = value_and_gradients(*inputs)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(np.asarray(one).astype(np.float64), other, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(("platform", "results"), [("cpu", "f32"), ("tpu", "bf16"), ("cuda", "bf16")])
def test_only_cpus_are_asked_for_sums_in_float32(platform, results):
    """The factors are in bfloat16 everywhere, in the backward pass too."""
    text = lowered_text(value_and_gradients, X, KERNEL, GRAD, platform=platform)
    signatures = [line.rpartition(" : ")[2] for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(signatures) == 3
    for signature in signatures:
        factors, _, result = signature.partition(" -> ")
        assert factors.count("xbf16>") == 2
        assert result.endswith(f"x{results}>")
