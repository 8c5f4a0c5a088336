"""Train FASeg or Mask2Former: the command `fasseg train` of a clone. `python train.py --help` describes it."""

from fasseg_jax.programs.commands import run

if __name__ == "__main__":
    run("train")
