"""Comparison of hand-written derivatives with plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import torch


def weights_of(outputs) -> list[np.ndarray]:
    """Sines by which outputs are weighted and summed, so that each has a gradient of its own."""
    return [np.sin(np.arange(y.size, dtype=np.float32)).reshape(y.shape) for y in jax.tree.leaves(outputs)]


def values_and_gradients(function, *inputs) -> tuple[list, list]:
    """All results of a function of arrays, and the gradients of their weighted sum."""
    inputs = [jnp.asarray(x) for x in inputs]
    outputs = jax.tree.leaves(function(*inputs))
    weights = weights_of(outputs)

    def total(inputs):
        return sum((w * y).sum() for w, y in zip(weights, jax.tree.leaves(function(*inputs)), strict=True))

    return outputs, jax.grad(total)(inputs)


def values_and_gradients_of_pytorch(function, *inputs) -> tuple[list, list]:
    """The same of a PyTorch function, in float64."""
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in inputs]
    outputs = jax.tree.leaves(function(*leaves))
    total = sum((torch.tensor(w) * y).sum() for w, y in zip(weights_of_tensors(outputs), outputs, strict=True))
    return [y.detach() for y in outputs], list(torch.autograd.grad(total, leaves))


def weights_of_tensors(outputs) -> list[np.ndarray]:
    return weights_of([y.detach().numpy() for y in outputs])


def assert_equal(ours: tuple[list, list], theirs: tuple[list, list], atol: float) -> None:
    """Results and gradients agree."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)
