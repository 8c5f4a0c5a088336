"""Evaluate a trained model: the command `fasseg eval` of a clone. `python eval.py --help` describes it."""

from fasseg_jax.programs.commands import run

if __name__ == "__main__":
    run("eval")
