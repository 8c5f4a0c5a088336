"""Stand-ins for gcloud, kubectl, sbatch and others, which record how they are called and refuse unknown flags.

`Cloud` writes them into a folder for PATH. Each call is a line of `calls.jsonl`. The stand-in for gcloud keeps buckets
as folders, and plays lives of a TPU slice.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Flags by the beginning of the command. Sources: cloud.google.com/sdk/gcloud/reference, the reference of kubectl at
# kubernetes.io, and the manual pages of Slurm 22.05.
FLAGS = {
    "gcloud compute tpus queued-resources list": "project zone quiet format",
    "gcloud compute tpus queued-resources create": "project zone quiet node-id accelerator-type runtime-version "
    "service-account metadata-from-file spot guaranteed reserved",
    "gcloud compute tpus queued-resources delete": "project zone quiet force",
    "gcloud storage cp": "quiet",
    "gcloud storage cat": "",
    "gcloud storage rm": "quiet",
    "gcloud storage buckets describe": "format",
    "gcloud storage buckets create": "project location uniform-bucket-level-access public-access-prevention",
    "gcloud storage buckets add-iam-policy-binding": "member role",
    "gcloud services enable": "project",
    "gcloud iam service-accounts describe": "project format",
    "gcloud iam service-accounts create": "project display-name",
    "gcloud projects add-iam-policy-binding": "member role condition",
    "gcloud artifacts repositories describe": "project location",
    "gcloud artifacts repositories create": "project location repository-format",
    "gcloud builds submit": "project config substitutions",
    "gcloud container clusters describe": "project location",
    "gcloud container clusters create": "project location num-nodes machine-type release-channel service-account",
    "gcloud container clusters get-credentials": "project location",
    "gcloud container node-pools describe": "cluster project location",
    "gcloud container node-pools create": "cluster project location machine-type tpu-topology num-nodes spot "
    "service-account scopes",
    "kubectl apply": "server-side filename",
    "kubectl create": "filename",
    "kubectl wait": "namespace for timeout",
    "sbatch": "nodes gpus-per-node ntasks-per-node cpus-per-task time job-name output open-mode requeue signal",
    "srun": "cpus-per-task kill-on-bad-exit",
    "scontrol requeue": "",
    "systemd-run": "unit property",
    "curl": "silent show-error fail location continue-at output header",
    "uv venv": "clear python",
    "uv pip": "python constraints system no-cache",
    "uvx": "python constraints from",
}
PROGRAMS = sorted({command.split()[0] for command in FLAGS})
ENDS_OPTIONS = ("srun", "sbatch", "uvx")  # what follows the first other argument are those of the program


class Cloud:
    """The stand-ins of one test."""

    def __init__(self, folder: Path):
        """Write them into `folder / "bin"`."""
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        for program in PROGRAMS:
            self.write_program(program, f'exec "{sys.executable}" -S "{__file__}" "{folder}" {program} "$@"\n')

    def write_program(self, name: str, script: str) -> None:
        """Make `script` the program of this name."""
        file = self.programs / name
        file.write_text(f"#!/usr/bin/env bash\n{script}")
        file.chmod(0o755)

    def run(self, command: Sequence[object], cwd: Path, **variables: str) -> subprocess.CompletedProcess:
        """Run a script with the stand-ins and without waiting; it has a minute."""
        kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment = {**kept, "PATH": f"{self.programs}:{os.environ['PATH']}", "POLL": "0", "WAIT": "0"}
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            env={**environment, "RESTART_WAIT": "0", **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def lives(self, *lives: Sequence[str], there: bool = False) -> None:
        """Say what becomes of the slices, each of which is requested anew.

        Args:
          lives: for each slice what each listing shows: a state, and after it "; STATUS HOST" of hosts that have ended.
            The last one stays. "no answer" is an error of the network.
          there: the first slice is there already.
        """
        (self.folder / "slices.json").write_text(json.dumps({"lives": lives, "there": there, "tick": 0}))

    def calls(self, beginning: str) -> list[str]:
        """The calls so far that begin so, without their standard input."""
        return [call["command"] for call in self.records(beginning)]

    def records(self, beginning: str) -> list[dict]:
        """The same with `input` and the working directory."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [record for record in map(json.loads, lines) if record["command"].startswith(beginning)]

    def path(self, url: str) -> Path:
        """Where an object of a bucket is kept."""
        return self.folder / url.replace("gs://", "buckets/")


def main(folder: Path, program: str, arguments: list[str]) -> int:
    """Be one of the programs."""
    command = " ".join([program, *arguments])
    wants_input = command.startswith(("kubectl create", "gcloud storage cp -"))
    record = {"command": command, "input": sys.stdin.read() if wants_input else ""}
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    known = next((flags for start, flags in FLAGS.items() if f"{command} ".startswith(f"{start} ")), None)
    if known is None:
        print(f"{program}: no such command: {command}", file=sys.stderr)
        return 2
    for argument in arguments:
        if program in ENDS_OPTIONS and not argument.startswith("-"):
            break
        if re.match(r"--\w", argument) and argument.split("=")[0][2:] not in known.split():
            print(f"{program}: no such flag: {argument}", file=sys.stderr)
            return 2
    failing = folder / "failing"
    if failing.exists() and command.startswith(failing.read_text()):
        return 1
    if command.startswith("gcloud compute tpus queued-resources"):
        return _slices(folder, arguments[3], arguments)
    if command.startswith("gcloud storage"):
        return _storage(folder, arguments[1], [name for name in arguments[2:] if not name.startswith("--")], record)
    if " describe " in command:
        return int(not (folder / "everything is there").exists())
    return 0


def _slices(folder: Path, verb: str, arguments: list[str]) -> int:
    file = folder / "slices.json"
    slices = json.loads(file.read_text())
    if verb == "list" and slices["there"]:
        states = slices["lives"][0]
        state, *ended = states[min(slices["tick"], len(states) - 1)].split("; ")
        slices["tick"] += 1
        for status_host in ended:
            _path(folder, f"gs://b/recipes/fasseg/ended/{status_host.split()[1]}").write_text(status_host + "\n")
        print("another ACTIVE" + (f"\nfasseg {state}" if state != "no answer" else ""))
    else:
        state = ""
    if verb == "create":
        slices.update(there=True, tick=0)
        script = next(word for word in arguments if word.startswith("--metadata-from-file=startup-script="))
        shutil.copy(script.split("=", 2)[2], folder / "startup.sh")
    elif verb == "delete":
        slices.update(there=False, lives=slices["lives"][1:])
    file.write_text(json.dumps(slices))
    return int(state == "no answer")


def _storage(folder: Path, verb: str, names: list[str], record: dict) -> int:
    match verb:
        case "cp" if names[0] == "-":
            _path(folder, names[1]).write_text(record["input"])
        case "cp" if names[1] == "-":
            sys.stdout.buffer.write(_path(folder, names[0]).read_bytes())
        case "cp":
            _path(folder, names[1]).write_bytes(_path(folder, names[0]).read_bytes())
        case "cat" | "rm":
            found = sorted(_path(folder, names[0].rstrip("/*") + "/x").parent.glob("*"))
            for file in found:
                print(file.read_text(), end="") if verb == "cat" else file.unlink()
            return int(not found)
        case "buckets" if names[0] == "describe":
            return int(not (folder / "everything is there").exists())
    return 0


def _path(folder: Path, url: str) -> Path:
    path = Path(folder, url.replace("gs://", "buckets/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
