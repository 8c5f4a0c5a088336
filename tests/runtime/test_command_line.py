"""What the programs print on stderr beside their own line."""

import subprocess
import sys

FAILING_WRITES = """
import gc, threading
from fasseg_jax.runtime.command_line import parse_flags

parse_flags(["program"])
source = "def write(*_): raise OSError('the disk is full')"
library = {}
exec(compile(source, FILE, "exec"), library)

async def given_up():
    pass

class Handler:
    __del__ = library["write"]

thread = threading.Thread(target=library["write"])
thread.start()
thread.join()
given_up()
Handler()
gc.collect()
"""


def printed(file: str) -> str:
    """What a program prints whose thread, destructor and coroutine fail in this file."""
    source = FAILING_WRITES.replace("FILE", repr(file))
    process = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert not process.stdout
    return process.stderr


def test_what_the_writing_threads_say_is_not_printed():
    assert printed("/site-packages/orbax/checkpoint/write.py") == ""


def test_errors_of_other_threads_are_printed():
    assert printed("/site-packages/another/write.py").count("OSError: the disk is full") == 2
