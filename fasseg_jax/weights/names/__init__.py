"""Tables of names: PyTorch parameter -> Flax variable, one file for each program."""
