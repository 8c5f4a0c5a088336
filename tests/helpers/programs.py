"""Runs many command lines of programs, importing the libraries once."""

import json
import subprocess
import sys

from tests.helpers import ROOT

# Runs each [program, *arguments] of a JSON list in a fork of its own, so that all is imported once, and prints
# [[status, stdout, stderr], ...].
MANY_RUNS = """
import json, multiprocessing, os, runpy, sys, tempfile
import fasseg_jax.evaluation.run, fasseg_jax.inference.predict, optax

def run(program, arguments, output, errors):
    os.dup2(output.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    program, *command = program.split()
    sys.argv[:] = [program, *command, *arguments]
    if program == "fasseg":
        runpy.run_module("fasseg_jax", run_name="__main__", alter_sys=True)
    elif program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)

results = []
for program, *arguments in json.load(sys.stdin):
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = multiprocessing.get_context("fork").Process(target=run, args=(program, arguments, output, errors))
        process.start()
        process.join()
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode())
    results.append([process.exitcode, *texts])
print(json.dumps(results))
"""


def run_all(command_lines: list[list[str]], environment: dict[str, str] | None = None) -> list[tuple[int, str, str]]:
    """(status, stdout, stderr) of each program with its arguments; "fasseg train" is the command."""
    process = subprocess.run(
        [sys.executable, "-c", MANY_RUNS],
        cwd=ROOT,
        env=environment,
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)
