"""Examine the data of a training: read every file once, and list what is wrong.

    fasseg check --config folder:DATA

prints the classes, their shares and the mistakes. `fasseg train --check` does the same. Exit status: 0 no mistakes; 1
there are some; 2 wrong usage, or no data.
"""

from absl import logging
from ml_collections import ConfigDict

from fasseg_jax.config import check_config, config_flags
from fasseg_jax.data import data_classes
from fasseg_jax.data.check import check_data, print_reports
from fasseg_jax.runtime.command_line import print_error

__all__ = ["check", "define_flags", "main"]


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
        return check(config)
    except (ValueError, OSError) as error:
        return print_error(error, status=2)


def check(config: ConfigDict) -> int:
    """Examine the data, print what they hold and what is wrong, and return the exit status.

    Raises:
      ValueError, OSError: there are no data.
    """
    reports = check_data(config)
    print_reports(reports, data_classes(config.data))
    return 1 if any(report.problems for report in reports) else 0


def define_flags() -> None:
    """Define the command line of `fasseg check`."""
    config_flags.DEFINE_config_file(
        "config", None, "The recipe, e.g. folder:DATA; --config.NAME=VALUE overrides a field."
    )
