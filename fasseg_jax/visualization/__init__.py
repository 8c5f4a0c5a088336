"""Drawn output: overlays with their legends, and confusion matrices."""
