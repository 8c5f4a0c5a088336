"""A model as one file that needs no code of this package: `python -m fasseg_jax.export`."""
