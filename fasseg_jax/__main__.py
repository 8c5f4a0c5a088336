"""`python -m fasseg_jax` is the command `fasseg`."""

from fasseg_jax.programs.commands import main

if __name__ == "__main__":
    main()
