"""Segment photos or a video: the command `fasseg predict` of a clone. `python predict.py --help` describes it."""

from fasseg_jax.programs.commands import run

if __name__ == "__main__":
    run("predict")
