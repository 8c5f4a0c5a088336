"""The machine and the process: devices, compilation, threads, files, the command line. Knows nothing of images."""
