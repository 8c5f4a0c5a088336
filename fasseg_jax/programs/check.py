"""Examine the data of a training: read every file once, and list what is wrong.

    fasseg check --config folder:DATA --pictures DIR

prints the classes, their shares and the mistakes, and what to run next. DIR, if it is named, gets pictures of samples
with their labels, augmented as the network gets them. `fasseg train --check` does the same.

Exit status: 0 no mistakes; 1 there are some, or the pictures cannot be written; 2 wrong usage, or no data.
"""

import shlex
import sys

from absl import flags, logging
from ml_collections import ConfigDict

from fasseg_jax.config import check_config, config_flags
from fasseg_jax.data import DataError, data_classes, describe_data
from fasseg_jax.data.check import check_data, print_reports
from fasseg_jax.importing.suggestion import explain, suggest_import
from fasseg_jax.runtime.command_line import one_line, other_program, print_error, printable
from fasseg_jax.runtime.files import Path, WriteError
from fasseg_jax.visualization.data_pictures import write_data_pictures

__all__ = ["check", "define_flags", "explain_data_error", "main"]


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    try:
        if argv[1:]:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        config = config_flags.given_config()
        if config is None:
            raise ValueError("--config is needed, e.g. --config folder:DATA")
        check_config(config, training=True)
        return check(config, flags.FLAGS.pictures)
    except (ValueError, OSError) as error:
        explain_data_error(error)
        return print_error(error, status=1 if isinstance(error, WriteError) else 2)


def explain_data_error(error: Exception) -> None:
    """Add advice to an error about the folder of the data: what is there, what was looked for, an import."""
    if isinstance(error, DataError):
        explain(error, Path(config_flags.given_config().data.root).expanduser())


def check(config: ConfigDict, pictures: str | None, workdir: str | None = None) -> int:
    """Examine the data, print what they hold, what is wrong, and what to run next; return the exit status.

    Args:
      config: the configuration of the training.
      pictures: folder for pictures of samples.
      workdir: folder of the run, if the command line names one.

    Raises:
      ValueError, OSError: there are no data.
      WriteError: the pictures cannot be written.
    """
    for line in describe_data(config.data):
        print(one_line(line))
    reports = check_data(config)
    print_reports(reports, data_classes(config.data))
    if pictures:
        print(*write_data_pictures(config, reports, Path(pictures)), sep="\n")
    if any(report.problems for report in reports):
        if config.data.source == "folder":
            readable = any(report.num_images for report in reports)
            for line in suggest_import(Path(config.data.root).expanduser(), readable):
                print(printable(line))
        return 1
    arguments = _without_check(sys.argv[1:])
    if not workdir:
        name = Path(config.data.root).expanduser().resolve().name if config.data.root else config.data.source
        arguments += ["--workdir", f"runs/{name}"]
    print(f"Next: {other_program('train')} {shlex.join(arguments)}")
    return 0


def _without_check(arguments: list[str]) -> list[str]:
    """The arguments that a training shares with a check."""
    shared = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name == "pictures" and not equals:
            next(rest, None)  # its value
        elif name not in ("check", "pictures"):
            shared.append(argument)
    return shared


def define_flags() -> None:
    """Define the command line of `fasseg check`."""
    config_flags.DEFINE_config_file(
        "config", None, "The recipe, e.g. folder:DATA; --config.NAME=VALUE overrides a field."
    )
    flags.DEFINE_string("pictures", None, "Folder for pictures of samples with their labels.")
