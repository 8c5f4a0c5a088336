"""FASeg in JAX: semantic segmentation with dynamic focus-aware positional queries."""
