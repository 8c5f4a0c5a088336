"""Where samples come from: one kind of source a file, and the registry that names them."""
