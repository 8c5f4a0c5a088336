"""The name of `fasseg serve` in version 0.1."""
