"""The programs' command lines: a mistake ends a program with one line, not with a traceback."""

import sys

from absl import flags

from fasseg_jax.runtime.files import Path

__all__ = ["parse_flags", "parse_size", "print_error"]


def print_error(error: object, status: int) -> int:
    """Print one line on stderr, and return `status`."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def parse_flags(argv: list[str]) -> list[str]:
    """Read the command line; a mistake in it ends the program with one line and status 2."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError, ValueError) as error:
        sys.exit(print_error(f"{error}; see --help", status=2))


def parse_size(text: str, divisor: int = 1) -> tuple[int, int]:
    """Read "HEIGHTxWIDTH" of --size.

    Args:
      text: for example "512x683".
      divisor: both sides must be multiples of it.

    Returns:
      (height, width) in pixels.

    Raises:
      ValueError: the text is no such size.
    """
    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) != 2 or not all(side and side % divisor == 0 for side in sides):
        multiples = f"multiples of {divisor}" if divisor > 1 else "in pixels"
        raise ValueError(f"--size {text}: give HEIGHTxWIDTH, {multiples}, e.g. 512x1024")
    height, width = sides
    return height, width
