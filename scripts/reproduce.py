r"""From downloaded weights and data to the published mIoU, in one command.

    python scripts/reproduce.py \
        --model ade20k:r50 \
        --weights ade_faseg_r50.pth \
        --data ADEChallengeData2016 \
        --workdir reproduced/r50

It converts the weights, evaluates the model on the validation split, and compares the mIoU with the published one in
scripts/published.json. After an interruption the same command resumes. WORKDIR gets checkpoint/, the results of eval.py
in evaluation_MODE/, and result_MODE.json.

Exit status: 0 the mIoU is the published one within the tolerance; 1 it is not, or something cannot be read or written;
2 wrong usage, weights or data; 75 interrupted, and the same command resumes.
"""

import hashlib
import json
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from fasseg_jax.config import check_config, load_config
from fasseg_jax.evaluation.run import Evaluation, EvaluationOptions, prepare_evaluation, run_evaluation
from fasseg_jax.runtime.command_line import parse_flags, print_error
from fasseg_jax.runtime.compilation import announce
from fasseg_jax.runtime.devices import choose_devices
from fasseg_jax.runtime.files import Path, WriteError, make_path, write_atomically
from fasseg_jax.runtime.supervision import INTERRUPTED
from fasseg_jax.weights.convert import convert

SCRIPTS = Path(__file__).parent

MODEL = flags.DEFINE_string("model", None, "FILE:VARIANT of configs/, e.g. ade20k:r50, or a recipe of your own (x.py).")
WEIGHTS = flags.DEFINE_string("weights", None, "Downloaded weights: a file, or a folder of transformers.")
DATA = flags.DEFINE_string("data", None, "Folder of the data set: config.data.root.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoint and results; made if absent.")
MULTI_SCALE = flags.DEFINE_bool("multi_scale", False, "Compare the mIoU over several sizes and mirror images.")
TOLERANCE = flags.DEFINE_float("tolerance", 0.2, "Largest difference, in points of mIoU.", lower_bound=0)
EXPECTED = flags.DEFINE_float("expected", None, "Compare with this mIoU, in points, instead of the published one.")


def main(argv: list[str]) -> int:
    """Run the program and return its exit status."""
    logging.set_verbosity(logging.WARNING)
    mode = "multi_scale" if MULTI_SCALE.value else "single"
    try:
        require_flags(argv)
        config = read_config(MODEL.value, DATA.value)
        expected, source = expected_miou(MODEL.value, mode, EXPECTED.value)
        workdir = make_path(WORKDIR.value)
        checkpoint = convert_once(config, MODEL.value, WEIGHTS.value, workdir)
        output = str(workdir / f"evaluation_{mode}")
        evaluation = prepare_evaluation(EvaluationOptions(str(checkpoint), config, output, mode), choose_devices(None))
        evaluation.segmenter.announce = announce
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return print_error(error, status=1 if isinstance(error, WriteError) else 2)
    try:
        if run_evaluation(evaluation).interrupted:
            return INTERRUPTED
        return compare(evaluation, workdir / f"result_{mode}.json", expected, source)
    except (ValueError, OSError, FloatingPointError) as error:
        return print_error(error, status=1)


def require_flags(argv: list[str]) -> None:
    """Raise a `ValueError` if a flag is missing, or an argument is none."""
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    for flag in (MODEL, WEIGHTS, WORKDIR):
        if not flag.value:
            raise ValueError(f"--{flag.name} is needed; see --help")


def read_config(model: str, data: str | None) -> ConfigDict:
    """The recipe of `--model` for the data set in the folder `data`."""
    name, _, variant = model.partition(":")
    path = name if name.endswith(".py") else str(SCRIPTS.parent / "configs" / f"{name}.py")
    config = load_config(f"{path}:{variant}" if variant else path)
    if data:
        config.data.root = data
    check_config(config)
    return config


def expected_miou(model: str, mode: str, given: float | None) -> tuple[float, str]:
    """The mIoU in points that is expected of a model, and where it is from."""
    if given is not None:
        return given, "--expected"
    published = json.loads((SCRIPTS / "published.json").read_text("utf-8"))
    if mode not in published.get(model, {}):
        known = ", ".join(name for name, entry in published.items() if mode in entry)
        raise ValueError(
            f"--model {model}: nobody has published its mIoU ({mode.replace('_', '-')}); "
            f"give --expected, or one of {known}"
        )
    return published[model][mode], published[model]["source"]


def convert_once(config: ConfigDict, model: str, weights: str, workdir: Path) -> Path:
    """Convert the weights to WORKDIR/checkpoint, unless an earlier run has done it.

    Raises:
      ValueError: WORKDIR holds the checkpoint of another model or of other weights.
    """
    checkpoint, record = workdir / "checkpoint", workdir / "weights.json"
    ours = {"model": model, "weights_sha256": digest(make_path(weights))}
    if record.exists():
        if json.loads(record.read_text("utf-8")) != ours:
            raise ValueError(f"{workdir}: holds another model, or other weights; choose another --workdir")
        return checkpoint
    print(convert(config, weights, str(checkpoint), overwrite=checkpoint.exists()))
    with write_atomically(record) as partial:
        partial.write_text(json.dumps(ours))
    return checkpoint


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def compare(evaluation: Evaluation, result_file: Path, expected: float, source: str) -> int:
    """Write and print how the evaluation's mIoU compares, and return the exit status."""
    metrics = json.loads((make_path(evaluation.output) / "metrics.json").read_text("utf-8"))
    miou = 100 * metrics["metrics"]["mean_iou"]
    reached = abs(miou - expected) <= TOLERANCE.value
    result: dict[str, Any] = {
        "model": MODEL.value,
        "inference": metrics["inference"],
        "images": int(metrics["images"]),
        "mean_iou": miou,
        "expected": expected,
        "source": source,
        "tolerance": TOLERANCE.value,
        "reached": reached,
    }
    with write_atomically(result_file) as partial:
        partial.write_text(json.dumps(result, indent=2))
    print(
        f"{MODEL.value}: mIoU {miou:.2f}, expected {expected:.2f} ({source}). The difference of {miou - expected:+.2f} "
        f"is {'within' if reached else 'MORE THAN'} {TOLERANCE.value:g}."
    )
    return 0 if reached else 1


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
