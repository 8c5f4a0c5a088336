"""How long a program takes from its command line to the first training step, or to the first overlay.

    python benchmarks/startup.py --rounds 3

makes weights of a recipe's network and a photo in a temporary folder, and starts `train.py` and `predict.py` as a user
does: cold, with no compiled program on disk, and warm, with what the cold start left there. Training starts from
random weights, and from the weights with a new class head. The clock begins with the process, and ends with the line
of the first step or with the overlay. Seconds of CPU time are those of the whole process until then; they vary less
than the clock beside other work.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags, logging
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from fasseg_jax.config import load_config
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.sources.shapes import ShapesSource
from fasseg_jax.models.fasseg import build_model, initial_values, initial_variables
from fasseg_jax.weights.checkpoint import save_checkpoint

CONFIG = flags.DEFINE_string("config", "configs/ade20k.py:r50", "Recipe of the network.")
SIDE = flags.DEFINE_integer("side", 512, "Side of the crops and of the photo, in pixels.")
BATCH = flags.DEFINE_integer("batch", 2, "Crops in a training step.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Starts of each kind.", lower_bound=1)
ONLY = flags.DEFINE_list("only", ["train", "train from weights", "predict"], "What to start.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP = "step 1:"
CLASSES = "shapes"  # of the generated photos; not those of the recipe, so weights get a new class head


def commands(folder: Path) -> dict[str, list[str]]:
    """What is started: name -> program and arguments; writes the weights and the photo that they need."""
    config = load_config(CONFIG.value)
    model = build_model(config.model)
    names = flatten_dict(jax.eval_shape(lambda: initial_variables(model, 0)), sep="/")
    weights = unflatten_dict(initial_values(model, 0, names), sep="/")
    save_checkpoint(folder / "weights", config, weights, load_classes(config.data.dataset))
    classes = load_classes(CLASSES)
    photo = ShapesSource("validation", 1, (SIDE.value, SIDE.value), classes, ignore_label=255)[0].image
    Image.fromarray(photo).save(folder / "photo.jpg")
    settings = {
        "data.source": "shapes",
        "data.dataset": CLASSES,
        "data.reduce_zero_label": False,
        "model.num_classes": len(classes),
        "augmentation.crop": (SIDE.value, SIDE.value),
        "train.batch_size": BATCH.value,
        "train.log_every": 1,
    }
    train = ["train.py", f"--config={CONFIG.value}", *(f"--config.{name}={value}" for name, value in settings.items())]
    predict = ["predict.py", f"--checkpoint={folder / 'weights'}", f"--input={folder / 'photo.jpg'}"]
    return {
        "train": train,
        "train from weights": [*train, f"--config.train.init={folder / 'weights'}"],
        "predict": [*predict, f"--short_side={SIDE.value}"],
    }


def start(command: list[str], work: Path, cache: Path) -> tuple[float, float]:
    """Seconds by the clock and of CPU time until the first step was done, or else until the program ended."""
    training = command[0] == "train.py"
    before, begin = os.times(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command, f"{'--workdir' if training else '--output'}={work}"],
        cwd=ROOT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if FIRST_STEP in line:
                process.kill()
                break
        seconds = time.perf_counter() - begin
        process.communicate()
    predicted = process.returncode == 0 and any(work.glob("*_overlay.png"))
    if not (any(FIRST_STEP in line for line in said) if training else predicted):
        raise SystemExit(f"{' '.join(command)} did not get there:\n{''.join(said[-10:])}")
    after = os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def measure(folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Name of a command -> "cold" or "warm" -> seconds by the clock and of CPU time, of each round."""
    chosen = {name: command for name, command in commands(folder).items() if name in ONLY.value}
    times: dict = {name: {"cold": [], "warm": []} for name in chosen}
    for turn in tqdm(range(ROUNDS.value), unit="round"):
        for name, command in chosen.items():
            for kind in ("cold", "warm"):
                place = folder / f"{turn}-{name}"
                times[name][kind].append(start(command, place / kind, place / "compiled"))
    return times


def main(_):
    """Measure and report."""
    logging.set_verbosity(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder))
    title = f"{CONFIG.value}, {SIDE.value}x{SIDE.value}, {os.cpu_count()} CPUs: median (range)"
    table = Table("start", "", "seconds", "seconds of CPU time", title=title)
    for name, kinds in times.items():
        for kind, measured in kinds.items():
            clock, cpu = zip(*measured, strict=True)
            ranges = (f"{np.median(each):.1f} ({min(each):.1f} to {max(each):.1f})" for each in (clock, cpu))
            table.add_row(name, kind, *ranges)
    Console(width=100).print(table)
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(json.dumps({"config": CONFIG.value, "side": SIDE.value, "times": times}))


if __name__ == "__main__":
    app.run(main)
