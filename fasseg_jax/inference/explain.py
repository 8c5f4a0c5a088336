"""What the model looked at: masks, focus and HRCA's choice for one photo, as the paper's figures show them.

The network runs once more over the same input as for the prediction, this time keeping what its decoder sows. A
program that does not ask for it pays nothing.
"""

import dataclasses
import functools
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import PhotoViews
from fasseg_jax.models.fasseg import FASeg
from fasseg_jax.models.hrca import WINDOW, window_tokens

__all__ = ["Explanation", "Focus", "Query", "Selection", "explain"]

MASK_STRIDE = 4
COARSEST = 32  # stride of the tokens by which HRCA chooses


@dataclasses.dataclass(frozen=True)
class Query:
    """One query and its part in the prediction.

    Attributes:
      index: which of the Q queries.
      class_id: its most probable class, "no object" left out.
      probability: of that class.
      share: its part of the photo's labels. Each pixel counts 1, divided among the queries as they contribute to the
        score of the pixel's label; the shares of all Q queries sum to 1.
      mask: (H/4, W/4) float32, its mask as probabilities, for the padded input of H x W.
    """

    index: int
    class_id: int
    probability: float
    share: float
    mask: np.ndarray


@dataclasses.dataclass(frozen=True)
class Focus:
    """Where the cross attention of one decoder layer looked.

    Attributes:
      layer: 0 to L - 1.
      stride: of its tokens, in pixels of the network's input: 32, 16, 8, or 4 in a high-resolution layer.
      attention: (n, H/stride, W/stride) float32 of the n queries shown, averaged over heads; each sums to 1. Zero
        where a high-resolution layer had no tokens to look at.
    """

    layer: int
    stride: int
    attention: np.ndarray


@dataclasses.dataclass(frozen=True)
class Selection:
    """What HRCA let one high-resolution layer look at (paper section 3.3).

    Attributes:
      layer: 0 to L - 1.
      boxes: (k, 4) float, (left, top, right, bottom) in pixels of the photo, the most attended first: windows of
        32 x 32 pixels of the network's input, or single tokens of 4 x 4 with `hrca_selection` "pixel".
    """

    layer: int
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the decoder did with one photo.

    Attributes:
      size: (h, w) of the resized photo, without padding; maps of stride s cover its first h/s rows, w/s columns.
      queries: those with the largest share of the labels, largest first.
      focus: of each decoder layer.
      selections: of each high-resolution layer; None in a model without HRCA.
      positional_queries: "dfpq" where the focus makes the next positional queries, "learned" where it does not.
    """

    size: tuple[int, int]
    queries: tuple[Query, ...]
    focus: tuple[Focus, ...]
    selections: tuple[Selection, ...] | None
    positional_queries: Literal["dfpq", "learned"]


def explain(segmenter: Segmenter, image: np.ndarray, labels: np.ndarray, num_queries: int = 6) -> Explanation:
    """Look into the decoder while it predicts a photo.

    Args:
      segmenter: the model.
      image: uint8 RGB, (H, W, 3).
      labels: (H, W), what the model predicts: `segmenter(image).labels`.
      num_queries: how many queries to show, at most.

    Raises:
      ValueError: the segmenter takes several views of a photo, or the image is not as stated.
    """
    if segmenter.config.inference.mode != "single":
        raise ValueError(
            f"only predictions from a single view can be explained, not config.inference.mode "
            f"{segmenter.config.inference.mode!r}"
        )
    views = PhotoViews(image, segmenter.config)
    size, network_input = views.placements[0].size, views.input(0)
    trace = jax.device_get(_trace(segmenter.model, segmenter.variables, network_input))
    shares = _shares(trace, labels, size)
    shown = np.argsort(-shares, kind="stable")[:num_queries]
    grid = network_input.shape[0] // COARSEST, network_input.shape[1] // COARSEST
    decoder = segmenter.config.model.decoder
    selections = tuple(
        Selection(layer, _boxes(chosen, decoder.hrca_selection, grid, size, image.shape[:2]))
        for layer, chosen in trace.chosen.items()
    )
    return Explanation(
        size=size,
        queries=tuple(_query(trace, index, shares[index]) for index in shown),
        focus=tuple(_focus(trace, layer, shown, grid) for layer in range(len(trace.attention))),
        selections=selections if decoder.hrca else None,
        positional_queries=decoder.positional_queries,
    )


@flax.struct.dataclass
class Trace:
    """Of one image: class probabilities (Q, K), masks (Q, H/4, W/4); by layer attention (Q, N), HRCA's choice.

    `chosen` holds window or token indices by the number of the high-resolution layer, `tokens` the stride-4 tokens.
    """

    class_probabilities: jax.Array
    masks: jax.Array
    attention: tuple[jax.Array, ...]
    chosen: dict[int, jax.Array]
    tokens: dict[int, jax.Array]


@functools.partial(jax.jit, static_argnums=0)
def _trace(model: FASeg, variables: dict, image: jax.Array) -> Trace:
    """Predict one normalised, padded image (H, W, 3) and keep what the decoder sows."""
    predictions, captured = model.apply(variables, image[None], train=False, mutable=["intermediates"])
    sown = captured["intermediates"]["decoder"]
    width = image.shape[1] // COARSEST
    windows, pixels = sown.get("hrca_windows", ()), sown.get("hrca_pixels", ())
    layers = range(model.decoder.num_scales - 1, model.decoder.num_layers, model.decoder.num_scales)
    chosen = dict(zip(layers, windows or pixels, strict=False))  # without HRCA there are such layers, but no choice
    return Trace(
        class_probabilities=jax.nn.softmax(predictions.class_logits[0])[:, :-1],
        masks=jax.nn.sigmoid(predictions.mask_logits[0]),
        attention=tuple(attention[0].astype(jnp.float32) for attention in sown["attention"]),
        chosen={layer: each[0] for layer, each in chosen.items()},
        tokens={layer: (window_tokens(each, width) if windows else each)[0] for layer, each in chosen.items()},
    )


def _shares(trace: Trace, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each query's share of the labels, (Q,), at the centres of the masks' cells."""
    rows, columns = (_cell_centres(*lengths) for lengths in zip(size, labels.shape, strict=True))
    labels = labels[rows][:, columns]
    masks = trace.masks[:, : len(rows), : len(columns)]
    parts = trace.class_probabilities[:, labels] * masks  # (Q, K)[:, (h/4, w/4)] -> (Q, h/4, w/4)
    return (parts / np.maximum(parts.sum(axis=0), np.finfo(np.float32).tiny)).mean(axis=(1, 2))


def _cell_centres(resized: int, photo: int) -> np.ndarray:
    """Positions in the photo of the centres of the stride-4 cells, along an axis."""
    centres = (np.arange(max(1, (resized + 1) // MASK_STRIDE)) + 0.5) * MASK_STRIDE
    return np.minimum(centres * photo / resized, photo - 1).astype(np.int64)


def _query(trace: Trace, index: int, share: float) -> Query:
    probabilities = trace.class_probabilities[index]
    class_id = int(probabilities.argmax())
    return Query(int(index), class_id, float(probabilities[class_id]), float(share), trace.masks[index])


def _focus(trace: Trace, layer: int, shown: np.ndarray, grid: tuple[int, int]) -> Focus:
    """The attention of a layer as maps; `grid` is the size at stride 32."""
    attention = trace.attention[layer][shown]  # (n, N)
    if layer in trace.tokens:
        everywhere = np.zeros((len(shown), grid[0] * grid[1] * WINDOW**2), np.float32)
        everywhere[:, trace.tokens[layer]] = attention
        attention = everywhere
    scale = round((attention.shape[1] / (grid[0] * grid[1])) ** 0.5)
    return Focus(layer, COARSEST // scale, attention.reshape(-1, grid[0] * scale, grid[1] * scale))  # (n, N)


def _boxes(
    chosen: np.ndarray, selection: str, grid: tuple[int, int], size: tuple[int, int], photo: tuple[int, int]
) -> np.ndarray:
    """Boxes (k, 4) in the photo of windows or tokens, by their row-major indices; cut at the photo's edges."""
    stride = COARSEST if selection == "window" else MASK_STRIDE
    row, column = np.divmod(chosen, grid[1] * COARSEST // stride)
    corners = np.stack([column, row, column + 1, row + 1], axis=1) * stride
    limits = np.array([size[1], size[0]] * 2)
    return np.minimum(corners, limits) * (np.array([photo[1], photo[0]] * 2) / limits)
