"""The programs: their flags, usage errors and exit status. What they do is in the other chapters."""
