"""A web page for trying a model: `fasseg demo`."""
