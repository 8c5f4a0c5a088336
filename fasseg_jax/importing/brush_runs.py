"""Label Studio's brush masks: run lengths in bits, as the library rle-pack writes them.

The numbers of an export are bytes. Their bits hold: the count of values (32 bits), the bits of a value less 1 (5), and
four sizes less 1 (4 each). Then come runs: a bit that says whether one value repeats, two bits that choose a size, a
count less 1 of that size, and the value, or as many values as the count says. Values are the four channels RGBA.
"""

from typing import Any

import numpy as np

__all__ = ["decode_brush"]


def decode_brush(numbers: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode a brush mask.

    Args:
      numbers: the list "rle" of an export.
      size: (height, width) in pixels.

    Returns:
      (H, W) bool, where the brush painted (alpha is not 0).

    Raises:
      ValueError: the list is damaged, or of another size.
    """
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number <= 255 for number in numbers):
        raise ValueError("its brush mask is no list of bytes")
    bits = np.unpackbits(np.array(numbers, np.uint8))
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise ValueError("its brush mask ends too early")
        value = 0
        for bit in bits[position - count : position].tolist():
            value = 2 * value + bit
        return value

    total, word = read(32), read(5) + 1
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"its brush mask has {total} values, a photo of {size[1]}x{size[0]} pixels needs 4 for each")
    sizes = [read(4) + 1 for _ in range(4)]
    values = np.zeros(total, np.uint32)
    begin = 0
    while begin < total:
        repeats = read(1)
        count = min(read(sizes[read(2)]) + 1, total - begin)
        if repeats:
            values[begin : begin + count] = read(word)
        else:
            if position + count * word > len(bits):
                raise ValueError("its brush mask ends too early")
            of_values = bits[position : position + count * word].reshape(count, word)
            values[begin : begin + count] = of_values @ (1 << np.arange(word - 1, -1, -1, dtype=np.uint32))
            position += count * word
        begin += count
    return values.reshape(*size, 4)[..., 3] > 0
