"""Learning curves of a run as a picture, from the metrics that it logs.

    fasseg curves WORKDIR
    fasseg curves WORKDIR WORKDIR --output curves.png

A training writes WORKDIR/curves.png itself with every checkpoint. This program draws it again, or several runs in one
picture.

Exit status: 0 done; 1 the picture cannot be written; 2 wrong usage, or a folder without metrics.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from absl import app, flags
from PIL import Image

from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.files import Path, WriteError, write_atomically
from fasseg_jax.training.metric_log import METRICS_FILE
from fasseg_jax.visualization.chart import LINE_COLORS, Chart, Line, draw_charts

__all__ = ["draw_curves", "read_metrics", "write_curves"]

PICTURE = "curves.png"
LOSS_PARTS = {"class_loss": "class (cross-entropy)", "mask_loss": "mask (cross-entropy)", "dice_loss": "mask (Dice)"}
SCORES = {"mean_iou": "mIoU", "pixel_accuracy": "Pixel accuracy"}

Metrics = dict[str, dict[int, float]]  # name -> step -> value


def write_curves(workdir: Path) -> None:
    """Draw the curves of a run to WORKDIR/curves.png; they are empty if somebody removed its metrics.

    Raises:
      OSError: the metrics cannot be read.
      WriteError: the picture cannot be written.
    """
    file = workdir / METRICS_FILE
    picture = draw_curves({workdir.name: read_metrics(file) if file.exists() else {}})
    with write_atomically(workdir / PICTURE) as partial:
        picture.save(partial)


def read_metrics(file: Path) -> Metrics:
    """Read what a run has logged, as one curve for each metric.

    If a run was killed after its latest checkpoint, the run that resumes it logs some steps again: these count, and not
    the earlier ones. A line that a kill cut off is left out.

    Raises:
      OSError: the file cannot be read.
    """
    metrics: Metrics = defaultdict(dict)
    last = 0
    for line in file.read_bytes().splitlines():
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
            numbers = {name: float(value) for name, value in values.items()}
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
            continue
        if step < last:
            for curve in metrics.values():
                for later in [other for other in curve if other >= step]:
                    del curve[later]
        last = step
        for name, value in numbers.items():
            metrics[name][step] = value if math.isfinite(value) else math.nan
    return dict(metrics)


def draw_curves(runs: Mapping[str, Metrics]) -> Image.Image:
    """Draw the curves of one run, or those of several over each other.

    Args:
      runs: name -> metrics, from `read_metrics`.
    """
    absent = "no evaluation yet"
    loss = Chart("Loss", _of_runs(runs, "loss"), smooth=True)
    rate = Chart("Learning rate", _of_runs(runs, "learning_rate"), from_zero=True)
    if len(runs) > 1:
        charts = [
            Chart(f"{title}, percent", _of_runs(runs, name, 100), dots=True, from_zero=True, absent=absent)
            for name, title in SCORES.items()
        ]
        return draw_charts([loss, charts[0], rate, charts[1]], 2, "step")
    (metrics,) = runs.values()
    parts = Chart("Parts of the loss, without their weights", _of_names(metrics, LOSS_PARTS), smooth=True)
    title = "Evaluation, percent"
    if best := [(value, step) for step, value in metrics.get("mean_iou", {}).items() if not math.isnan(value)]:
        value, step = max(best)
        title += f": best mIoU {100 * value:.2f} after step {step}"
    scores = Chart(title, _of_names(metrics, SCORES, 100), dots=True, from_zero=True, absent=absent)
    return draw_charts([loss, scores, parts, rate], 2, "step")


def _of_runs(runs: Mapping[str, Metrics], metric: str, factor: float = 1) -> list[Line]:
    """One metric of all runs."""
    return [_line(name, metrics.get(metric, {}), number, factor) for number, (name, metrics) in enumerate(runs.items())]


def _of_names(metrics: Metrics, names: Mapping[str, str], factor: float = 1) -> list[Line]:
    """Several metrics of a run."""
    return [_line(title, metrics.get(name, {}), number, factor) for number, (name, title) in enumerate(names.items())]


def _line(name: str, curve: Mapping[int, float], number: int, factor: float) -> Line:
    steps = sorted(curve)
    values = np.array([factor * curve[step] for step in steps], np.float64)
    return Line(name, np.array(steps, np.float64), values, LINE_COLORS[number % len(LINE_COLORS)])


def main(argv: list[str]) -> int:
    """Draw the curves of the runs that the command line names."""
    folders = [Path(name).expanduser() for name in argv[1:]]
    if not folders:
        return print_error("name the folder of a run, or of several", status=2)
    output = flags.FLAGS.output
    if len(folders) > 1 and not output:
        return print_error("--output is needed for several runs: the picture to write, such as curves.png", status=2)
    file = Path(output).expanduser() if output else folders[0] / PICTURE
    try:
        runs = {str(folder): read_metrics(folder / METRICS_FILE) for folder in folders}
        if empty := [name for name, metrics in runs.items() if not metrics]:
            return print_error(f"{Path(empty[0]) / METRICS_FILE} holds no metrics yet", status=2)
        picture = draw_curves(runs)
        with write_atomically(file) as partial:
            picture.save(partial)
    except WriteError as error:
        return print_error(error, status=1)
    except OSError as error:
        return print_error(f"{error.filename}: {error.strerror}; name the folder of a training", status=2)
    except ValueError as error:  # Pillow does not know the ending
        return print_error(f"--output {file}: {error}", status=2)
    print(f"The curves are in {file}.")
    return 0


def define_flags() -> None:
    """Define the command line of `fasseg curves`."""
    flags.DEFINE_string("output", None, "Picture to write; by default WORKDIR/curves.png.")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=parse_flags)
