"""Rare classes: which photos hold which classes, how often to repeat a photo, how much a class weighs."""

import hashlib

import numpy as np
from jaxtyping import Bool, Float, Int64
from ml_collections import ConfigDict
from tqdm import tqdm

from fasseg_jax.data.plausibility import count_sample
from fasseg_jax.data.samples import Source
from fasseg_jax.runtime.files import Path, write_atomically
from fasseg_jax.runtime.read_ahead import map_ahead

__all__ = [
    "balance_classes",
    "class_weights",
    "classes_of_photos",
    "epoch_length",
    "epoch_with_repeats",
    "repeat_factors",
]

LARGEST_WEIGHT = 10.0  # of a class; a class in a single photo would outweigh all others
READING = (
    "ignore_label",
    "label_orientation",
    "reduce_zero_label",
)  # fields of config.data that decide what labels are


def balance_classes(
    config: ConfigDict, source: Source, cache: Path | None = None, writes: bool = True
) -> tuple[Float[np.ndarray, "n"] | None, tuple[float, ...]]:
    """What `config.data.repeat_below` and `config.loss.class_balance` mean for the training split.

    Args:
      config: the whole configuration.
      source: the training split.
      cache: see `classes_of_photos`, whose errors this raises; it is called only if one of the two is set.
      writes: the same.

    Returns:
      The repeat factors, None if every photo is visited once; and the value for `config.loss.class_weights`.
    """
    repeat_below, power, weights = config.data.repeat_below, config.loss.class_balance, config.loss.class_weights
    if not repeat_below and (weights or not power):
        return None, tuple(weights)
    present = classes_of_photos(source, config.data, cache, writes)
    repeats = repeat_factors(present, repeat_below) if repeat_below else None
    return repeats, tuple(weights) or (class_weights(present, power) if power else ())


def classes_of_photos(
    source: Source, data: ConfigDict, cache: Path | None = None, writes: bool = True
) -> Bool[np.ndarray, "n K"]:
    """Which photos hold which classes. All samples are read once; a file remembers the result.

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
    if cache is not None and (present := _cached(cache, key, (len(source), num_classes))) is not None:
        return present

    def look(index: int) -> np.ndarray:
        return count_sample(source[index], num_classes, data.ignore_label).pixels > 0

    indices = tqdm(range(len(source)), "looking for rare classes", unit="photo", leave=False, disable=None)
    present = np.stack([found for _, found in map_ahead(look, indices, data.num_threads)])
    if cache is not None and writes:
        with write_atomically(cache) as partial:
            np.savez(partial, key=np.array(key), present=present)
    return present


def _cached(cache: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    """What the file holds; None if it is of other samples, damaged or absent."""
    try:
        with np.load(cache) as file:
            present = file["present"]
            fits = str(file["key"]) == key and present.shape == shape and present.dtype == bool
            return present if fits else None
    except Exception:  # a damaged file can raise anything, and is written again
        return None


def repeat_factors(present: Bool[np.ndarray, "n K"], threshold: float) -> Float[np.ndarray, "n"]:
    """How often an epoch visits each photo, at least 1 (Gupta et al., LVIS, CVPR 2019, section 5.1).

    A class in a share f of the photos has the factor max(1, sqrt(threshold / f)), and a photo the largest of its
    classes.
    """
    shares = present.mean(axis=0)
    factors = np.maximum(1, np.sqrt(threshold / np.maximum(shares, 1 / len(present))))
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


def class_weights(present: Bool[np.ndarray, "n K"], power: float) -> tuple[float, ...]:
    """The weight of each class in the classification loss, proportional to its share of the photos to the -`power`.

    The mean over all targets (classes of photos) is 1, before weights above `LARGEST_WEIGHT` are cut. Classes that no
    photo holds have 1.
    """
    counts = present.sum(axis=0)
    weights = np.maximum(counts, 1.0) ** -power
    weights *= counts.sum() / max((counts * weights).sum(), 1e-300)
    weights = np.where(counts > 0, np.minimum(weights, LARGEST_WEIGHT), 1.0)
    return tuple(float(f"{weight:.6g}") for weight in weights)
