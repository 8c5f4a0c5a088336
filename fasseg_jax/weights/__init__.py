"""Checkpoints, and weights of other programs."""
