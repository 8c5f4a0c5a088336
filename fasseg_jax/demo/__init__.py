"""A web page for trying a model: `python -m fasseg_jax.demo`."""
