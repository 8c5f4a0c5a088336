"""Pure functions without parameters, each written because XLA's default for it is slow or takes much memory.

`reference.py` holds the plain version of each, which the tests compare it with.
"""
