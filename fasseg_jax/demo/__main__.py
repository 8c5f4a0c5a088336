"""Do as `fasseg serve`, which had this name in version 0.1."""

from absl import app

from fasseg_jax.runtime.command_line import parse_flags
from fasseg_jax.serving.__main__ import define_flags, main

if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
