"""Evaluation: pixel counts, metrics, and the files that show them."""
