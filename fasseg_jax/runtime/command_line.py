"""The programs' command lines: a mistake ends a program with one line, not with a traceback."""

import atexit
import importlib
import io
import logging
import os
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Iterable
from typing import Any

from absl import flags

from fasseg_jax.runtime.files import Path

__all__ = [
    "add_advice",
    "end_within",
    "one_line",
    "other_program",
    "parse_flags",
    "parse_size",
    "print_error",
    "printable",
    "program_name",
]

ORBAX = f"{os.sep}orbax{os.sep}"  # in the paths of its files
SCRIPTS = {"train.py", "eval.py", "predict.py", "convert.py"}  # of a clone


def print_error(error: object, status: int) -> int:
    """Print one line on stderr, which begins with the program's name, and return `status`.

    What `add_advice` added to the error, or to one of its causes, follows in lines of its own.
    """
    print(f"{program_name()}: {one_line(error)}", file=sys.stderr)
    for line in _advice(error):
        print(f"  {printable(line)}", file=sys.stderr)
    return status


def add_advice(error: BaseException, lines: Iterable[str]) -> None:
    """Add lines that `print_error` prints below an error. Its notes are not printed: libraries write there as well."""
    vars(error).setdefault("advice", []).extend(lines)


def _advice(error: object) -> list[str]:
    """The advice of an error and of its causes."""
    lines: list[str] = []
    while isinstance(error, BaseException):
        lines += getattr(error, "advice", [])
        error = error.__cause__ or error.__context__
    return lines


def program_name() -> str:
    """The name by which the program was started: "train.py", "fasseg train", or the module's after python -m."""
    program = Path(sys.argv[0])
    return program.parent.name if program.name == "__main__.py" else program.name


def other_program(command: str) -> str:
    """How to start another program in the way that this one was started: "python COMMAND.py" or "fasseg COMMAND"."""
    script = f"{command}.py"
    return f"python {script}" if {program_name(), script} <= SCRIPTS else f"fasseg {command}"


def one_line(message: object) -> str:
    """A message as one line. Control characters, which a file's name may hold, are printed as escapes."""
    return printable(" ".join(str(message).split()))


def printable(text: str) -> str:
    """A text whose control characters are escapes."""
    return "".join(letter if letter.isprintable() or ord(letter) > 255 else ascii(letter)[1:-1] for letter in text)


def end_within(seconds: float, status: int, message: str = "") -> None:
    """End the program after `seconds` if it still runs then, for example because a thread of a library is stuck.

    Args:
      seconds: from now.
      status: the exit status.
      message: is printed then.
    """

    def end() -> None:
        if message:
            print_error(message, status)
        sys.stdout.flush()
        os._exit(status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def parse_flags(argv: list[str]) -> list[str]:
    """Read the command line.

    A mistake in it ends the program with one line and status 2. --help and --version end it with status 0.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    atexit.register(_flush_output)
    _hide_errors_of_threads()
    if "version" not in flags.FLAGS:
        flags.DEFINE_flag(_VersionFlag())
    try:
        return flags.FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        sys.exit(print_error(error, status=2))
    except (flags.Error, OSError, ValueError) as error:
        sys.exit(print_error(f"{error}; see --help", status=2))
    except SystemExit as end:  # of absl's --help
        sys.exit(0 if end.code == 1 else end.code)


def _flush_output() -> None:
    """Print a line if stdout cannot be written, for example to a full disk. Python itself prints a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print_error(f"cannot write the standard output: {error.strerror}", status=1)
        os._exit(1)


def _hide_errors_of_threads() -> None:
    """Hide what Orbax's threads print when a write fails. Orbax raises the same errors in the main thread."""
    logging.getLogger("absl").addFilter(lambda record: ORBAX not in record.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # writes that were given up after the first error
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # likewise
    of_threads, unraisable = threading.excepthook, sys.unraisablehook

    def print_of_threads(error: Any) -> None:
        if not _passes_through_orbax(error.exc_traceback):
            of_threads(error)

    def print_unraisable(error: Any) -> None:
        if str(error.exc_value) != "Event loop is closed" and not _passes_through_orbax(error.exc_traceback):
            unraisable(error)

    threading.excepthook, sys.unraisablehook = print_of_threads, print_unraisable


def _passes_through_orbax(trace: types.TracebackType | None) -> bool:
    return any(ORBAX in frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace))


class _VersionFlag(flags.BooleanFlag):
    """Prints the version of the package, and ends the program."""

    def __init__(self) -> None:
        super().__init__("version", False, "Print the version and end.")

    def parse(self, argument: Any) -> None:
        super().parse(argument)
        if self.value:  # imported now, because the package imports this module
            print(f"fasseg_jax {importlib.import_module('fasseg_jax').__version__}")
            sys.exit(0)


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
