"""Multi-scale deformable sampling: `sampling.py` is the operation; one file for each method that computes it."""
