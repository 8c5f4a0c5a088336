"""Convert weights: the command `fasseg convert` of a clone. `python convert.py --help` describes it."""

from fasseg_jax.programs.commands import run

if __name__ == "__main__":
    run("convert")
