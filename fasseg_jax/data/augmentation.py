"""Augmentation of training samples: resize, crop, color jitter, flip, pad (the recipe of Mask2Former and FASeg)."""

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fasseg_jax.data.color_jitter import jitter_colors
from fasseg_jax.data.preprocessing import resized_size

__all__ = ["PAD_VALUE", "augment", "pad_to", "resize_and_crop"]

PAD_VALUE = 128  # of the image, before normalization


def augment(
    image: np.ndarray, labels: np.ndarray, config: ConfigDict, ignore_label: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a random training crop from a photo and its label map.

    Args:
      image: uint8 RGB, (H, W, 3).
      labels: uint8 or uint16, (H, W).
      config: `config.augmentation`.
      ignore_label: label of the padding.
      rng: source of the randomness; the same state gives the same crop.

    Returns:
      The crop, uint8 RGB of `config.crop` (height, width), and the labels of its pixels.
    """
    crop_height, crop_width = config.crop
    height, width = resized_size(image.shape[:2], int(rng.choice(config.short_sides)), config.max_long_side)
    anchor = None
    if config.balanced_crops and rng.random() < config.balanced_crops:
        anchor = _pixel_of_some_class(_resize_labels(labels, (height, width)), ignore_label, rng)
    if anchor is None:
        top = int(rng.integers(max(height - crop_height, 0), endpoint=True))
        left = int(rng.integers(max(width - crop_width, 0), endpoint=True))
    else:
        top = _start_around(anchor[0], crop_height, height, rng)
        left = _start_around(anchor[1], crop_width, width, rng)
    window = (top, left, min(crop_height, height), min(crop_width, width))
    image, labels = resize_and_crop(image, labels, (height, width), window)
    if config.color_jitter:
        image = jitter_colors(image, rng)
    if config.flip and rng.integers(2):
        image, labels = image[:, ::-1], labels[:, ::-1]
    if config.vertical_flip and rng.integers(2):
        image, labels = image[::-1], labels[::-1]
    if config.quarter_turns and (turns := int(rng.integers(4))):
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    return pad_to(image, config.crop, PAD_VALUE), pad_to(labels, config.crop, ignore_label)


def resize_and_crop(
    image: np.ndarray, labels: np.ndarray, size: tuple[int, int], window: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Resize a photo and its label map as Pillow does, and cut out a window.

    The photo is resized by Pillow's bilinear filter, antialiased if it shrinks; labels take the nearest pixel. Only the
    window of the photo is computed. So values halfway between two integers may round to the other one than they would
    if the whole photo was resized.

    Args:
      image: uint8 RGB, (H, W, 3).
      labels: uint8 or uint16, (H, W).
      size: (height, width) of the resized photo, in pixels.
      window: (top, left, height, width) in the resized photo.

    Returns:
      The window of image and labels.
    """
    height, width = size
    top, left, window_height, window_width = window
    scale_y, scale_x = image.shape[0] / height, image.shape[1] / width
    box = (left * scale_x, top * scale_y, (left + window_width) * scale_x, (top + window_height) * scale_y)
    window_of_image = Image.fromarray(image).resize((window_width, window_height), Image.Resampling.BILINEAR, box)
    resized_labels = _resize_labels(labels, size)
    return np.asarray(window_of_image), resized_labels[top : top + window_height, left : left + window_width]


def _resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def _pixel_of_some_class(labels: np.ndarray, ignore_label: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Draw one of the classes in `labels`, and (row, column) of one of its pixels; None if all are ignored.

    Every class has the same chance, however few pixels it has (nnU-Net's oversampling; Isensee et al., 2021).
    """
    classes = np.flatnonzero(np.bincount(labels.ravel(), minlength=ignore_label)[:ignore_label])
    if not len(classes):
        return None
    pixels = np.flatnonzero(labels.ravel() == rng.choice(classes))
    row, column = divmod(int(rng.choice(pixels)), labels.shape[1])
    return row, column


def _start_around(position: int, length: int, size: int, rng: np.random.Generator) -> int:
    """Where a window of `length` in 0 to `size` begins that contains `position`; uniform over all such windows."""
    return int(rng.integers(max(0, position - length + 1), max(0, min(position, size - length)), endpoint=True))


def pad_to(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Pad (h, w, ...) with `value` at the bottom and right to `size` = (height, width). The result is always a copy."""
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded
