r"""Follow a recipe from its first step to a converted checkpoint, with a SIGKILL in between.

    python scripts/whole_path.py --config scripts/small_backbones.py:vit,DIR \
        --photo PHOTO --workdir runs/whole_path

It trains, kills the run after a whole checkpoint, resumes it, evaluates, predicts with --explain, exports, and converts
the weights to a state dict and back. Then it compares. The resumed run begins after the step of a checkpoint, and its
losses of steps that the killed process did are the same. The weights after the round trip are equal. The exported file
labels a photo as the package does. The first thing that is wrong ends it with status 1. WORKDIR keeps the outputs and a
log of each part.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from PIL import Image

from fasseg_jax import Segmenter, load_config
from fasseg_jax.export.load_exported import load
from fasseg_jax.weights.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]

CONFIG = flags.DEFINE_string("config", None, "The recipe, as for train.py.", required=True)
PHOTO = flags.DEFINE_string("photo", None, "A photo to predict.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the outputs; it must not exist.", required=True)


def start(name: str, *arguments: str) -> subprocess.Popen:
    """Start a program of the project, whose output goes to WORKDIR/NAME.log."""
    with Path(WORKDIR.value, f"{name}.log").open("w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def run(name: str, *arguments: str) -> None:
    """Run a program of the project to its end."""
    begin = time.monotonic()
    if status := start(name, *arguments).wait():
        raise SystemExit(f"{name}: status {status}; see {WORKDIR.value}/{name}.log")
    print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


def checkpoints(run_folder: Path) -> list[int]:
    """Steps of the whole checkpoints; one that is being written has a longer name."""
    return sorted(int(path.name) for path in run_folder.glob("checkpoints/*") if path.name.isdigit())


def losses(run_folder: Path) -> list[tuple[int, float]]:
    """(step, loss) in metrics.jsonl, in the order in which they were logged."""
    file = run_folder / "metrics.jsonl"
    entries = map(json.loads, file.read_text("utf-8").splitlines() if file.exists() else [])
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def train_killed_once(run_folder: Path) -> None:
    """Train to the end. The first process is killed at a step that no checkpoint holds."""
    arguments = ["train.py", f"--config={CONFIG.value}", f"--workdir={run_folder}"]
    process = start("train_killed", *arguments)
    while not (done := checkpoints(run_folder)) or losses(run_folder)[-1][0] <= done[-1]:
        if process.poll() is not None:
            raise SystemExit(f"training ended before it was killed; see {WORKDIR.value}/train_killed.log")
        time.sleep(0.2)
    process.kill()
    process.wait()
    kept, before = checkpoints(run_folder), losses(run_folder)
    run("train_resumed", *arguments)
    after = losses(run_folder)[len(before) :]
    if not after or after[0][0] <= kept[-1] or checkpoints(run_folder)[-1] != load_config(CONFIG.value).train.steps:
        raise SystemExit(f"the resumed run logged {after} after the checkpoints {kept}")
    repeated = {step: (loss, dict(after)[step]) for step, loss in before if step in dict(after)}
    if any(first != again for first, again in repeated.values()):
        raise SystemExit(f"steps that both processes did have other losses: {repeated}")
    print(f"killed at step {before[-1][0]} with checkpoints {kept}; both processes agree on {repeated}", flush=True)
    print(f"loss {before[0][1]:.2f} at step {before[0][0]}, {after[-1][1]:.2f} at step {after[-1][0]}", flush=True)


def compare(checkpoint: Path, back: Path, exported: Path, size: tuple[int, int]) -> None:
    """The weights after the round trip, and the labels of the exported file."""
    ours, theirs = load_checkpoint(str(checkpoint)).variables, load_checkpoint(str(back)).variables
    differing = [
        jax.tree_util.keystr(path)
        for path, same in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, ours, theirs))
        if not same
    ]
    if differing:
        raise SystemExit(f"after the round trip, these weights differ: {', '.join(differing)}")
    print(f"{len(jax.tree.leaves(ours))} arrays are equal after the round trip", flush=True)
    height, width = size
    with Image.open(PHOTO.value) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    labels = Segmenter.from_checkpoint(str(back), inference={"mode": "single"})(pixels).labels
    if not np.array_equal(load(str(exported))(pixels), labels):
        raise SystemExit("the exported file labels a photo differently")
    print(f"the exported file gives the same labels; classes in them: {np.unique(labels).tolist()}", flush=True)


def use(checkpoint: Path, workdir: Path) -> None:
    """Evaluate, predict, export and convert the checkpoint of a run."""
    back, exported = workdir / "back", workdir / "model.npz"
    height = load_config(CONFIG.value).inference.short_side
    size = (height, height * 5 // 4 // 32 * 32)
    run("evaluate", "eval.py", f"--config={CONFIG.value}", f"--checkpoint={checkpoint}", f"--output={workdir / 'eval'}")
    metrics = json.loads((workdir / "eval" / "metrics.json").read_text("utf-8"))
    print(f"{metrics['images']} photos: {metrics['metrics']}", flush=True)
    prediction = [f"--checkpoint={checkpoint}", f"--input={PHOTO.value}", f"--output={workdir / 'predicted'}"]
    run("explain", "predict.py", *prediction, "--explain")
    print(f"predicted: {sorted(path.name for path in (workdir / 'predicted').rglob('*'))}", flush=True)
    sizes = f"--size={size[0]}x{size[1]}"
    run(
        "export",
        "-m",
        "fasseg_jax.export",
        f"--checkpoint={checkpoint}",
        sizes,
        "--platform=cpu",
        f"--output={exported}",
    )
    state_dict = workdir / "weights.safetensors"
    run("convert", "convert.py", f"--weights={checkpoint}", f"--output={state_dict}")
    run("convert_back", "convert.py", f"--config={CONFIG.value}", f"--weights={state_dict}", f"--output={back}")
    compare(checkpoint, back, exported, size)


def main(_: list[str]) -> None:
    """Follow the path."""
    logging.set_verbosity(logging.WARNING)
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True)
    train_killed_once(workdir / "run")
    use(workdir / "run" / "checkpoints" / str(load_config(CONFIG.value).train.steps), workdir)


if __name__ == "__main__":
    app.run(main)
