"""The paper's two contributions against plain numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from fasseg_jax.models import dfpq, hrca
from tests.ops.test_resize import naive_resize


@pytest.mark.parametrize("kind", ["foreground", "background"])
def test_first_focus(kind):
    probabilities = np.random.default_rng(0).uniform(size=(2, 3, 20))
    probabilities[0, 0] = 0.9 if kind == "background" else 0.1  # nothing to pool: all zeros
    probabilities[1, 1, 4] = 0.5  # the threshold itself counts as foreground
    expected = np.zeros_like(probabilities)
    for b, q in np.ndindex(2, 3):
        chosen = [n for n in range(20) if (probabilities[b, q, n] >= 0.5) == (kind == "foreground")]
        for n in chosen:
            expected[b, q, n] = 1 / (len(chosen) + 1e-6)
    ours = dfpq.first_focus(jnp.asarray(probabilities, jnp.float32), kind)
    np.testing.assert_allclose(ours, expected, atol=1e-7)


def test_focus_positions_are_weighted_means():
    rng = np.random.default_rng(0)
    attention, positions = rng.uniform(size=(2, 3, 20)), rng.standard_normal((2, 20, 5))
    expected = [[sum(attention[b, q, n] * positions[b, n] for n in range(20)) for q in range(3)] for b in range(2)]
    ours = dfpq.focus_positions(jnp.asarray(attention, jnp.float32), jnp.asarray(positions, jnp.float32))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "omega"), [((4, 6), 8), ((3, 5), 32), ((8, 8), 1)])
def test_windows(shape, omega):
    h, w = shape
    rng = np.random.default_rng(0)
    attention = rng.uniform(size=(2, 7, h * w)).astype(np.float32)
    feature = rng.standard_normal((2, 8 * h, 8 * w, 3)).astype(np.float32)
    k = max(1, h * w // omega)
    windows = hrca.select_windows(jnp.asarray(attention), omega)
    tokens = hrca.gather_tokens(jnp.asarray(feature), hrca.window_tokens(windows, w))
    for b in range(2):
        best = np.argsort(-attention[b].astype(np.float64).sum(axis=0))[:k]
        np.testing.assert_array_equal(windows[b], best)
        blocks = [feature[b, 8 * (i // w) : 8 * (i // w) + 8, 8 * (i % w) : 8 * (i % w) + 8] for i in best]
        np.testing.assert_array_equal(tokens[b], np.concatenate([block.reshape(64, 3) for block in blocks]))


def test_pixels():
    h, w, omega = 4, 6, 8
    attention = np.random.default_rng(0).uniform(size=(2, 7, h * w)).astype(np.float32)
    pixels = np.asarray(hrca.select_pixels(jnp.asarray(attention), omega, (h, w)))
    assert pixels.shape == (2, h * w // omega * 64)
    for b in range(2):
        scores = attention[b].astype(np.float64).sum(axis=0).reshape(1, h, w, 1)
        scores = naive_resize(scores, (8 * h, 8 * w)).ravel()
        best = np.argsort(-scores, kind="stable")[: pixels.shape[1]]
        # Equal up to the order of scores that float32 cannot tell apart.
        np.testing.assert_allclose(scores[pixels[b]], scores[best], atol=1e-6)
        assert len(set(pixels[b])) == pixels.shape[1]
