"""The command `fasseg`: it lists the programs, and runs one of them.

The modules of the programs are imported only when they run, because most of them import JAX.
"""

import dataclasses
import difflib
import gc
import importlib
import sys

from absl import app, flags

from fasseg_jax import __version__
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.garbage import paused_garbage_collection
from fasseg_jax.runtime.supervision import supervise

__all__ = ["COMMANDS", "Command", "main", "run"]


@dataclasses.dataclass(frozen=True)
class Command:
    """A program.

    Attributes:
      module: its module, which has a docstring for --help, `define_flags()`, and `main(argv)`, which returns the exit
        status.
      help: what it does, in a line.
    """

    module: str
    help: str


COMMANDS = {
    "train": Command("fasseg_jax.programs.train", "Train a model, or resume a run."),
    "eval": Command("fasseg_jax.programs.eval", "Evaluate a model on a validation split."),
    "predict": Command("fasseg_jax.programs.predict", "Segment photos, a video or a camera's images."),
    "convert": Command("fasseg_jax.programs.convert", "Convert weights from and to PyTorch programs."),
    "check": Command("fasseg_jax.programs.check", "Examine the data of a training and list mistakes."),
    "import": Command("fasseg_jax.importing.__main__", "Turn annotations of other tools into a folder to train from."),
    "export": Command("fasseg_jax.export.__main__", "Write a model as one file that needs no code of this package."),
    "serve": Command("fasseg_jax.serving.__main__", "Serve a model over HTTP, with a web page for trying it."),
    "demo": Command("fasseg_jax.serving.__main__", "Another name of serve."),
    "curves": Command("fasseg_jax.training.curves", "Draw the learning curves of a run, or of several."),
    "push": Command("fasseg_jax.programs.push", "Write a model as a folder for the Hugging Face Hub, and upload it."),
    "summary": Command("fasseg_jax.summary.__main__", "Print parameters, arithmetic and memory of a network."),
}
ON_SEVERAL_HOSTS = ("train", "eval", "predict")


def main() -> None:
    """Run `fasseg COMMAND ARGUMENTS`, and end with its exit status."""
    command, *arguments = sys.argv[1:] or ["--help"]
    sys.argv[0] = "fasseg"
    if command in ("--help", "-h", "help"):
        print(usage())
    elif command in ("--version", "version"):
        print(f"fasseg_jax {__version__}")
    elif command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        sys.exit(print_error(f"there is no command {command!r}; {hint}", status=2))
    else:
        sys.argv[:] = [f"fasseg {command}", *arguments]
        run(command)


def usage() -> str:
    """The commands, with a line for each."""
    lines = [f"  {name:<9} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "FASeg in JAX: semantic segmentation.",
            "",
            "usage: fasseg COMMAND [--FLAG=VALUE ...]",
            "",
            *lines,
            "",
            "fasseg COMMAND --help describes a command; fasseg --version prints the version.",
        ]
    )


def run(command: str) -> None:
    """Run a program with the arguments in `sys.argv[1:]`, and end with its exit status."""
    if command in ON_SEVERAL_HOSTS:
        supervise()
    with paused_garbage_collection():
        program = importlib.import_module(COMMANDS[command].module)
        gc.freeze()  # from now on the search leaves out what was imported
    sys.modules["__main__"].__doc__ = program.__doc__  # absl prints it at --help
    program.define_flags()
    for flag in flags.FLAGS.get_key_flags_for_module(program):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # --help lists those of the main module
    app.run(program.main, flags_parser=parse_flags)
