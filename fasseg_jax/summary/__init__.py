"""Parameters, arithmetic and memory of a configuration's network: `python -m fasseg_jax.summary`."""
