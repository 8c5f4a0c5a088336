"""One file for each format of annotations."""
