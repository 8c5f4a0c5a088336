"""Parameters, arithmetic and memory of a configuration's network: `fasseg summary`."""
