"""The network, one part of the paper a file."""
