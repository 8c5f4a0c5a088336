"""Hides PyTorch from a process that has this folder in its PYTHONPATH."""

raise ImportError("this process does without PyTorch")
