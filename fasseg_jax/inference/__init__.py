"""Inference: from photos to labels, explanations and videos."""
