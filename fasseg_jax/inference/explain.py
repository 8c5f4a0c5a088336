"""What the decoder looks at in a photo: masks, focus and HRCA's selection, as in the paper's figures.

The network runs once more on the input of the prediction, and this time keeps what its decoder sows. A prediction that
is not explained pays nothing for this.
"""

import dataclasses
import functools
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Integer

from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.inference.views import PhotoViews
from fasseg_jax.models.fasseg import FASeg
from fasseg_jax.models.hrca import WINDOW, window_tokens
from fasseg_jax.models.predictions import MASK_STRIDE

__all__ = ["Explanation", "Focus", "Query", "Selection", "explain"]

COARSEST = 32  # stride of the tokens by which HRCA selects


@dataclasses.dataclass(frozen=True)
class Query:
    """One query and its part in the prediction.

    Attributes:
      index: index among the Q queries.
      class_id: its most probable class, "no object" left out.
      probability: its probability of that class.
      share: the fraction of the photo's labels that it accounts for. Each pixel counts 1, divided among the queries in
        proportion to what they contribute to the score of the pixel's label. The shares of all Q queries sum to 1.
      mask: its mask as probabilities, at stride 4 of the padded input.
    """

    index: int
    class_id: int
    probability: float
    share: float
    mask: Float32[np.ndarray, "h w"]


@dataclasses.dataclass(frozen=True)
class Focus:
    """Where the cross attention of one decoder layer looks.

    Attributes:
      layer: 0 to L - 1.
      stride: of the layer's tokens, in pixels of the network's input: 32, 16, 8, or 4 in a high-resolution layer.
      attention: of the n queries shown, averaged over heads, as a map of the padded input at this stride. Each map sums
        to 1. Tokens that a high-resolution layer did not select are zero.
    """

    layer: int
    stride: int
    attention: Float32[np.ndarray, "n h w"]


@dataclasses.dataclass(frozen=True)
class Selection:
    """The tokens that HRCA selects for one high-resolution layer (paper section 3.3).

    Attributes:
      layer: 0 to L - 1.
      boxes: left, top, right and bottom edge of each selected part, in pixels of the photo, the most attended first.
        The parts are windows of 32 x 32 pixels of the network's input, or with `hrca_selection` "pixel" tokens of
        4 x 4.
    """

    layer: int
    boxes: Float[np.ndarray, "k 4"]


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What the decoder does with one photo.

    Attributes:
      size: (h, w) of the resized photo without padding. Of a map at stride s, the first h/s rows and w/s columns show
        the photo.
      queries: the queries with the largest shares, the largest first.
      focus: of each decoder layer.
      selections: of each high-resolution layer; None for a model without HRCA.
      positional_queries: "dfpq" if the focus makes the next positional queries, else "learned".
    """

    size: tuple[int, int]
    queries: tuple[Query, ...]
    focus: tuple[Focus, ...]
    selections: tuple[Selection, ...] | None
    positional_queries: Literal["dfpq", "learned"]


def explain(
    segmenter: Segmenter, image: np.ndarray, labels: Integer[np.ndarray, "H W"], num_queries: int = 6
) -> Explanation:
    """Look into the decoder while it predicts a photo.

    Args:
      segmenter: the model.
      image: uint8 RGB, (H, W, 3).
      labels: what the model predicts: `segmenter(image).labels`.
      num_queries: how many queries to show, at most.

    Raises:
      ValueError: the segmenter predicts several views of a photo, or the image is not as stated.
    """
    if segmenter.config.inference.mode != "single":
        raise ValueError(
            f"only predictions from a single view can be explained, not those of config.inference.mode "
            f"{segmenter.config.inference.mode!r}"
        )
    views = PhotoViews(image, segmenter.config)
    size, network_input = views.placements[0].size, views.input(0)
    segmenter.announce_once("the explanation", network_input.shape[:2])
    trace: Trace = jax.device_get(_trace(segmenter.model, segmenter.variables, network_input))
    shares = _shares(trace, labels, size)
    shown = np.argsort(-shares, kind="stable")[:num_queries]
    grid = network_input.shape[0] // COARSEST, network_input.shape[1] // COARSEST
    decoder = segmenter.config.model.decoder
    selections = tuple(
        Selection(layer, _boxes(np.asarray(chosen), decoder.hrca_selection, grid, size, views.size))
        for layer, chosen in trace.chosen.items()
    )
    return Explanation(
        size=size,
        queries=tuple(_query(trace, int(index), float(shares[index])) for index in shown),
        focus=tuple(_focus(trace, layer, shown, grid) for layer in range(len(trace.attention))),
        selections=selections if decoder.hrca else None,
        positional_queries=decoder.positional_queries,
    )


@flax.struct.dataclass
class Trace:
    """What the network predicts and its decoder sows for one image.

    Attributes:
      class_probabilities: without "no object".
      masks: as probabilities, at stride 4.
      attention: cross attention of each layer, averaged over heads.
      chosen: indices of the windows or stride-4 tokens that each high-resolution layer selects, by layer.
      tokens: indices of the stride-4 tokens in them, by layer.
    """

    class_probabilities: Float32[Array | np.ndarray, "Q K"]
    masks: Float32[Array | np.ndarray, "Q h w"]
    attention: tuple[Float32[Array | np.ndarray, "Q _"], ...]
    chosen: dict[int, Int[Array | np.ndarray, "_"]]
    tokens: dict[int, Int[Array | np.ndarray, "_"]]


@functools.partial(jax.jit, static_argnums=0)
def _trace(model: FASeg, variables: dict[str, Any], image: Float32[Array | np.ndarray, "h w 3"]) -> Trace:
    """Predict one normalized, padded image, and keep what the decoder sows."""
    predictions, captured = model.apply(variables, image[None], train=False, mutable=["intermediates"])
    sown = captured["intermediates"]["decoder"]
    width = image.shape[1] // COARSEST
    windows, pixels = sown.get("hrca_windows", ()), sown.get("hrca_pixels", ())
    layers = range(model.decoder.num_scales - 1, model.decoder.num_layers, model.decoder.num_scales)
    # A model without HRCA sows neither, although it has such layers: hence not strict.
    chosen = dict(zip(layers, windows or pixels, strict=False))
    return Trace(
        class_probabilities=jax.nn.softmax(predictions.class_logits[0])[:, :-1],
        masks=jax.nn.sigmoid(predictions.mask_logits[0]),
        attention=tuple(attention[0].astype(jnp.float32) for attention in sown["attention"]),
        chosen={layer: each[0] for layer, each in chosen.items()},
        tokens={layer: (window_tokens(each, width) if windows else each)[0] for layer, each in chosen.items()},
    )


def _shares(trace: Trace, labels: Integer[np.ndarray, "H W"], size: tuple[int, int]) -> Float[np.ndarray, "Q"]:
    """Each query's share of the labels, counted at the centers of the masks' pixels."""
    rows, columns = (_pixel_centers(*lengths) for lengths in zip(size, labels.shape, strict=True))
    masks = np.asarray(trace.masks)[:, : len(rows), : len(columns)]
    parts = np.asarray(trace.class_probabilities)[:, labels[rows][:, columns]] * masks  # (Q, h, w)
    return (parts / np.maximum(parts.sum(axis=0), np.finfo(np.float32).tiny)).mean(axis=(1, 2))


def _pixel_centers(resized: int, photo: int) -> Int[np.ndarray, "n"]:
    """The photo's pixels below the centers of the masks' pixels, along an axis."""
    centers = (np.arange(max(1, (resized + 1) // MASK_STRIDE)) + 0.5) * MASK_STRIDE
    return np.minimum(centers * photo / resized, photo - 1).astype(np.int64)


def _query(trace: Trace, index: int, share: float) -> Query:
    probabilities = np.asarray(trace.class_probabilities[index])
    class_id = int(probabilities.argmax())
    return Query(index, class_id, float(probabilities[class_id]), share, np.asarray(trace.masks[index]))


def _focus(trace: Trace, layer: int, shown: Int[np.ndarray, "n"], grid: tuple[int, int]) -> Focus:
    """The attention of a layer as maps; `grid` is (H/32, W/32)."""
    attention = np.asarray(trace.attention[layer])[shown]  # (n, N)
    if layer in trace.tokens:
        everywhere = np.zeros((len(shown), grid[0] * grid[1] * WINDOW**2), np.float32)
        everywhere[:, trace.tokens[layer]] = attention
        attention = everywhere
    scale = round((attention.shape[1] / (grid[0] * grid[1])) ** 0.5)
    return Focus(layer, COARSEST // scale, attention.reshape(-1, grid[0] * scale, grid[1] * scale))  # (n, N)


def _boxes(
    chosen: Int[np.ndarray, "k"], selection: str, grid: tuple[int, int], size: tuple[int, int], photo: tuple[int, int]
) -> Float[np.ndarray, "k 4"]:
    """The boxes in the photo of windows or tokens, given by their row-major indices, cut at the photo's edges."""
    stride = COARSEST if selection == "window" else MASK_STRIDE
    row, column = np.divmod(chosen, grid[1] * COARSEST // stride)
    edges = np.stack([column, row, column + 1, row + 1], axis=1) * stride
    limits = np.array([size[1], size[0]] * 2)
    return np.minimum(edges, limits) * (np.array([photo[1], photo[0]] * 2) / limits)
