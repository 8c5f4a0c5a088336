"""What the programs' command lines share: a mistake ends a program with one line, not with a traceback."""

import sys
from pathlib import Path

from absl import flags

__all__ = ["print_error", "parse_flags"]


def print_error(error: object, status: int) -> int:
    """Print one line on stderr and return `status`."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def parse_flags(argv: list[str]) -> list[str]:
    """Read the command line; a mistake in it ends the program with one line and status 2."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError, ValueError) as error:
        sys.exit(print_error(f"{error}; see --help", status=2))
