"""A model as one file that needs no code of this package: `fasseg export`."""
