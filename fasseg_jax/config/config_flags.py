"""The flag --config of the programs: `ml_collections.config_flags`, except that it accepts old names."""

import sys
from typing import Any

from absl import flags
from ml_collections.config_flags import DEFINE_config_file as define_flag

from fasseg_jax.config.loading import rename_old, renamed_argument

__all__ = ["DEFINE_config_file", "ConfigFlag"]


class ConfigFlag:
    """Holds the value of a flag --config."""

    def __init__(self, holder: flags.FlagHolder):
        """`holder` is that of `ml_collections.config_flags`."""
        self._holder = holder

    @property
    def value(self) -> Any:
        """The configuration, with new names for old ones; None if the flag has no default and is not given."""
        config = self._holder.value
        if config is not None:
            rename_old(config)
        return config


def DEFINE_config_file(  # noqa: N802
    name: str, default: str | None = None, help_string: str = "", flag_values: flags.FlagValues = flags.FLAGS
) -> ConfigFlag:
    """Define the flag --NAME, whose value is a recipe; --NAME.FIELD=VALUE overrides fields of it.

    Old names of fields in the command line, `sys.argv`, are replaced: the flags of fields exist only for new names.
    """
    sys.argv[:] = [renamed_argument(argument, name) for argument in sys.argv]
    return ConfigFlag(define_flag(name, default, help_string, flag_values))
