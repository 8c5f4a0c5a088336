"""The flag --config of the programs: `ml_collections.config_flags`, with old names, and one line for each mistake."""

import re
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import DEFINE_config_file as define_flag

from fasseg_jax.config.loading import flat_fields, load_config, rename_old, renamed_argument
from fasseg_jax.config.schema import ConfigError, check_config, near_name
from fasseg_jax.runtime.command_line import print_error

__all__ = ["DEFINE_config_file", "ConfigFlag", "given_config"]

flags.disclaim_key_flags()  # so that --help lists the flag among those of the program


class ConfigFlag:
    """Holds the value of a flag --config."""

    def __init__(self, holder: flags.FlagHolder):
        """`holder` is that of `ml_collections.config_flags`."""
        self._holder = holder

    @property
    def value(self) -> Any:
        """The configuration, with new names for old ones; None if the flag has no default and is not given.

        Raises:
          ConfigError: a field has a value that is not allowed; the message names the field.
        """
        return _checked(self._holder.value)


def given_config(name: str = "config") -> Any:
    """The value of the flag --NAME of the program, once the command line is read; as `ConfigFlag.value`."""
    return _checked(flags.FLAGS[name].value)


def _checked(config: ConfigDict | None) -> ConfigDict | None:
    if config is not None:
        rename_old(config)
        check_config(config)
    return config


class _RecipeParser(flags.ArgumentParser):
    """Evaluates a recipe, and refuses overrides of fields that it does not have."""

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: str) -> ConfigDict:
        config = load_config(argument)
        fields = flat_fields(config)
        groups = {name[:end] for name in fields for end, letter in enumerate(name) if letter == "."}
        for text in sys.argv:
            match = re.match(rf"--?(?:no)?{self.name}\.([^=]*)", text)
            if match and match[1] not in fields.keys() | groups:
                raise ConfigError(
                    f"--{self.name}.{match[1]}: there is no such field{near_name(match[1], fields, f'--{self.name}.')}"
                )
        return config.lock()

    def flag_type(self) -> str:
        return "recipe"


def DEFINE_config_file(  # noqa: N802
    name: str, default: str | None = None, help_string: str = "", flag_values: flags.FlagValues = flags.FLAGS
) -> ConfigFlag:
    """Define the flag --NAME, whose value is a recipe; --NAME.FIELD=VALUE overrides fields of it.

    Old names of fields in the command line, `sys.argv`, are replaced: the flags of fields exist only for new names.
    A mistake in an override of the default recipe, which is read at once, ends the program with one line and status 2.
    """
    sys.argv[:] = [renamed_argument(argument, name) for argument in sys.argv]
    holder = define_flag(name, None, help_string, flag_values)
    flag_values[name].parser = _RecipeParser(name)
    if default:
        try:
            flag_values.set_default(name, default)
        except (flags.Error, OSError, ValueError) as error:
            sys.exit(print_error(error, status=2))
    return ConfigFlag(holder)
