"""Try what happens on two hosts when one of them fails, and print it as a table.

    python scripts/host_faults.py              # all faults: an hour on two busy cores
    python scripts/host_faults.py killed stopped

Two processes of this machine take the place of two hosts, and train a tiny model. `config.train.lost_host_seconds` is
10 here. Run it in the root of a clone.
"""

import dataclasses
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SECONDS = 10
PATIENCE = 900  # seconds, after which something hangs
FIELDS = {
    **{"data.shapes.size": "(64,64)", "data.shapes.training": 40, "data.shapes.validation": 4},
    **{"augmentation.short_sides": "(64,)", "augmentation.crop": "(64,64)", "inference.short_side": 64},
    **{"model.backbone.blocks": "(1,1,1,1)", "model.backbone.width": 8, "model.hidden_dim": 32, "model.num_heads": 4},
    **{"model.pixel_decoder.num_layers": 1, "model.pixel_decoder.ffn_dim": 32, "model.decoder.num_queries": 9},
    **{"model.decoder.num_layers": 2, "model.decoder.ffn_dim": 32, "loss.num_points": 64},
    **{"train.batch_size": 4, "train.steps": 100_000, "train.log_every": 1, "train.checkpoint_every": 1},
    "train.lost_host_seconds": SECONDS,
}
OTHER_VERSION = """
import importlib.metadata, sys
from fasseg_jax.programs.commands import run
version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.0.1" if name == "optax" else version(name)
sys.argv[0] = "train.py"
run("train")
"""


class Hosts:
    """Two hosts in a temporary folder."""

    def __init__(self, folder: Path):
        """`folder` is for all that they write."""
        self.folder, self.workdirs = folder, [folder / "run", folder / "run"]
        self.fields: list[dict[str, object]] = [dict(FIELDS), dict(FIELDS)]
        self.program = [["train.py"], ["train.py"]]
        self.limited: int | None = None  # the host that can write no file of more than 100 kB
        self.processes: list[subprocess.Popen | None] = [None, None]

    def start(self, *hosts: int) -> None:
        """Start these hosts, of both."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
        for host in hosts or (0, 1):
            settings = [f"--config.{name}={value}" for name, value in self.fields[host].items()]
            arguments = ["--config", "configs/shapes.py", "--workdir", str(self.workdirs[host]), *settings]
            with open(self.folder / f"out{host}", "w") as output, open(self.folder / f"err{host}", "w") as errors:
                self.processes[host] = subprocess.Popen(
                    [sys.executable, *self.program[host], *arguments],
                    env={**os.environ, **common, "JAX_PROCESS_ID": str(host)},
                    stdout=output,
                    stderr=errors,
                    preexec_fn=limit_files if self.limited == host else None,
                )

    def wait(self, text: str) -> None:
        """Wait until host 0 prints a text."""
        deadline = time.monotonic() + PATIENCE
        while text not in (self.folder / "out0").read_text():
            running = all(process is None or process.poll() is None for process in self.processes)
            assert running and time.monotonic() < deadline, (self.folder / "err0").read_text()
            time.sleep(0.05)

    def child(self, host: int) -> int:
        """The process that trains."""
        process = self.processes[host]
        assert process is not None
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])

    def ends(self) -> list[str]:
        """Wait for the end, and say in words how each host ended, in how many seconds from now."""
        begin, words = time.monotonic(), ["was not started", "was not started"]
        running = {host: process for host, process in enumerate(self.processes) if process}
        while running and time.monotonic() < begin + PATIENCE:
            for host, process in list(running.items()):
                if process.poll() is not None:
                    del running[host]
                    lines = (self.folder / f"err{host}").read_text().strip().splitlines()
                    seconds = time.monotonic() - begin
                    words[host] = f"{process.returncode} after {seconds:.0f} s: {'<br>'.join(lines) or 'nothing'}"
            time.sleep(0.05)
        for host, process in running.items():
            process.kill()
            words[host] = "HANGS"
        return [text.replace(str(self.folder), "").replace("|", "/") for text in words]


def limit_files() -> None:
    """In place of a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def kill(hosts: Hosts, host: int, after: str) -> None:
    """Kill a host when host 0 has printed a text."""
    hosts.start()
    hosts.wait(after)
    process = hosts.processes[host]
    assert process is not None
    process.kill()


def kill_child(hosts: Hosts) -> None:
    """Kill what computes on host 1, not its parent."""
    hosts.start()
    hosts.wait("step 2")
    os.kill(hosts.child(1), signal.SIGKILL)


def stop(hosts: Hosts) -> None:
    """Suspend host 1."""
    hosts.start()
    hosts.wait("step 2")
    child = hosts.child(1)
    os.kill(child, signal.SIGSTOP)
    threading.Timer(3 * SECONDS, os.kill, (child, signal.SIGCONT)).start()


def other_field(hosts: Hosts, name: str, value: object) -> None:
    """Start host 1 with another field of the configuration."""
    hosts.fields[1][name] = value
    hosts.start()


def other_version(hosts: Hosts) -> None:
    """Start host 1 as if it had another version of optax."""
    hosts.program[1] = ["-c", OTHER_VERSION]
    hosts.start()


def no_data(hosts: Hosts) -> None:
    """Start with data that only host 0 has."""
    rng = np.random.default_rng(0)
    for part in ("training", "validation"):
        for kind, shape, ending in (("images", (64, 64, 3), "jpg"), ("annotations", (64, 64), "png")):
            path = hosts.folder / "data" / kind / part
            path.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 3, shape, np.uint8)).save(path / f"{number}.{ending}")
    for host, name in enumerate(("data", "absent")):
        fields = {"source": "folder", "dataset": "", "root": hosts.folder / name, "reduce_zero_label": False}
        hosts.fields[host] |= {f"data.{field}": value for field, value in fields.items()}
        hosts.fields[host]["model.num_classes"] = 3
    hosts.start()


def not_shared(hosts: Hosts) -> None:
    """Start with a folder for each host."""
    hosts.workdirs[1] = hosts.folder / "other"
    hosts.start()


def remove_workdir(hosts: Hosts) -> None:
    """Remove the folder of the run."""
    hosts.start()
    hosts.wait("step 2")
    shutil.rmtree(hosts.workdirs[0], ignore_errors=True)


def full_disk(hosts: Hosts, host: int) -> None:
    """Start a host so that it can write no checkpoint."""
    hosts.limited = host
    hosts.start()
    hosts.wait("step 1")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What fails, in words, and the function that starts the hosts and lets one fail."""

    words: str
    happens: Callable[[Hosts], None]


FAULTS = {
    "seed": Fault("host 1 has another seed", lambda hosts: other_field(hosts, "train.seed", 1)),
    "configuration": Fault("host 1 has another network", lambda hosts: other_field(hosts, "model.hidden_dim", 64)),
    "version": Fault("host 1 has another version of a package", other_version),
    "data": Fault("the data are missing on host 1", no_data),
    "shared": Fault("the folder of the run is not shared", not_shared),
    "compiling": Fault("SIGKILL on host 1 before the first step", lambda hosts: kill(hosts, 1, "Compiling")),
    "killed": Fault("SIGKILL on host 1 after a step", lambda hosts: kill(hosts, 1, "step 2")),
    "killed_0": Fault("SIGKILL on host 0 after a step", lambda hosts: kill(hosts, 0, "step 2")),
    "memory": Fault("SIGKILL on host 1 by the kernel, which is out of memory", kill_child),
    "stopped": Fault("SIGSTOP on host 1, for 30 s", stop),
    "removed": Fault("the folder of the run is removed", remove_workdir),
    "disk": Fault("the disk is full on host 0", lambda hosts: full_disk(hosts, 0)),
    "disk_1": Fault("the disk is full on host 1", lambda hosts: full_disk(hosts, 1)),
    "never": Fault("host 1 does not start", lambda hosts: hosts.start(0)),
}


def main() -> None:
    """Print a row for each fault."""
    names = sys.argv[1:] or list(FAULTS)
    print("| What fails | Host 0: status | Host 1: status |\n|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            hosts = Hosts(Path(folder))
            FAULTS[name].happens(hosts)
            print(f"| {FAULTS[name].words} | {' | '.join(hosts.ends())} |", flush=True)


if __name__ == "__main__":
    main()
