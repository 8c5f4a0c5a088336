"""Training: the loop, one step, the optimizer, where a run starts from, and what it leaves behind."""
