"""Rare classes: how many pixels of each class a photo holds, how often to repeat it, how much a class weighs."""

import hashlib

import numpy as np
from jaxtyping import Float, Int64
from ml_collections import ConfigDict
from tqdm import tqdm

from fasseg_jax.data.plausibility import count_sample
from fasseg_jax.data.samples import Source
from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = [
    "balance_classes",
    "class_weights",
    "count_classes",
    "epoch_length",
    "epoch_with_repeats",
    "repeat_factors",
]

LARGEST_WEIGHT = 10.0  # of a class; a class in a single photo would outweigh all others
# Fields of config.data that decide which class a pixel has.
READING = ("ignore_label", "label_orientation", "reduce_zero_label")


def balance_classes(
    config: ConfigDict, source: Source, cache: Path | None = None, writes: bool = True
) -> tuple[Float[np.ndarray, "n"] | None, tuple[float, ...]]:
    """What `config.data.repeat_below` and `config.loss.class_balance` mean for the training split.

    Args:
      config: the whole configuration.
      source: the training split.
      cache: see `count_classes`, whose errors this raises; it is called only if one of the two is set.
      writes: the same.

    Returns:
      The repeat factors, None if every photo is visited once; and the value for `config.loss.class_weights`.
    """
    repeat_below, power, weights = config.data.repeat_below, config.loss.class_balance, config.loss.class_weights
    if not repeat_below and (weights or not power):
        return None, tuple(weights)
    pixels = count_classes(source, config.data, cache, writes)
    repeats = repeat_factors(pixels, repeat_below) if repeat_below else None
    return repeats, tuple(weights) or (class_weights(pixels, power) if power else ())


def count_classes(
    source: Source, data: ConfigDict, cache: Path | None = None, writes: bool = True
) -> Int64[np.ndarray, "n K"]:
    """The number of pixels of each class in each photo. All samples are read once; a file remembers the result.

    Args:
      source: the training split.
      data: `config.data`.
      cache: the file, ending in .npz. It counts only while the samples are the same. None: no file.
      writes: whether to write the file.

    Raises:
      DataError: a sample cannot be read; the message names its file.
      WriteError: the file cannot be written.
    """
    num_classes = len(source.classes)
    versions = [*(repr(data[field]) for field in READING), str(num_classes), *map(source.version, range(len(source)))]
    key = hashlib.sha256("\n".join(versions).encode("utf-8", "surrogateescape")).hexdigest()
    if cache is not None and (pixels := _cached(cache, key, (len(source), num_classes))) is not None:
        return pixels

    def look(index: int) -> np.ndarray:
        return count_sample(source[index], num_classes, data.ignore_label).pixels

    indices = tqdm(range(len(source)), "looking for rare classes", unit="photo", leave=False, disable=None)
    pixels = np.stack([found for _, found in map_ahead(look, indices, data.num_threads)])
    if cache is not None and writes:
        with write_atomically(cache) as partial:
            np.savez_compressed(partial, key=np.array(key), pixels=pixels)
    return pixels


def _cached(cache: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """What the file holds; None if it is of other samples, damaged or absent."""
    try:
        with np.load(cache) as file:
            pixels = file["pixels"]
            fits = str(file["key"]) == key and pixels.shape == shape and pixels.dtype == np.int64
            return pixels if fits else None
    except Exception:  # a damaged file can raise anything, and is written again
        return None


def repeat_factors(pixels: Int64[np.ndarray, "n K"], threshold: float) -> Float[np.ndarray, "n"]:
    """How often an epoch visits each photo, at least 1 (Gupta et al., LVIS, CVPR 2019, section 5.1).

    A class in a share f of the photos has the factor max(1, sqrt(threshold / f)), and a photo the largest of its
    classes.
    """
    present = pixels > 0
    shares = np.maximum(present.mean(axis=0), 1 / len(present))
    factors = np.maximum(1, np.sqrt(threshold / shares))
    return np.where(present, factors, 1.0).max(axis=1)


def epoch_with_repeats(repeats: Float[np.ndarray, "n"], rng: np.random.Generator) -> Int64[np.ndarray, "N"]:
    """The photos of an epoch in random order; N is the sum of `repeats`, rounded up.

    The expected number of visits of a photo is proportional to its factor, and at least the factor. The number itself
    is the integer below or above it (systematic sampling), so that all epochs have the same length.
    """
    ends = np.cumsum(repeats)
    length = epoch_length(repeats)
    positions = (rng.random() + np.arange(length)) * (ends[-1] / length)
    return rng.permutation(np.minimum(np.searchsorted(ends, positions, side="right"), len(ends) - 1))


def epoch_length(repeats: Float[np.ndarray, "n"]) -> int:
    """N, how many photos an epoch visits."""
    return int(np.ceil(repeats.sum() - 1e-9))


def class_weights(pixels: Int64[np.ndarray, "n K"], power: float) -> tuple[float, ...]:
    """The weight of each class in the classification loss, proportional to its share of the pixels to the -`power`.

    The mean over all targets (classes of photos) is 1, before weights above `LARGEST_WEIGHT` are cut. Classes that no
    photo holds have 1.
    """
    targets = (pixels > 0).sum(axis=0)
    weights = np.maximum(pixels.sum(axis=0), 1.0) ** -power
    weights *= targets.sum() / max((targets * weights).sum(), 1e-300)
    weights = np.where(targets > 0, np.minimum(weights, LARGEST_WEIGHT), 1.0)
    return tuple(float(f"{weight:.6g}") for weight in weights)
