"""scripts/: from weights to the published number, and figures of models."""

import json
import shutil

import pytest

from fasseg_jax.config import load_config
from fasseg_jax.models.fasseg import build_model
from fasseg_jax.summary.summary import summarize
from fasseg_jax.weights.state_dict import to_state_dict
from fasseg_jax.weights.torch_files import write_state_dict
from tests.helpers import ROOT, error_lines
from tests.helpers.programs import run_all
from tests.helpers.tiny import random_variables
from tests.helpers.training_runs import environment

SCRIPTS = ROOT / "scripts"

RECIPE = """
from fasseg_jax.config import load_config

def get_config():
    config = load_config("configs/shapes.py")
    config.data.shapes.update(size=(64, 64), validation=6)
    config.inference.update(short_side=64, max_long_side=64)
    config.model.decoder.num_layers = 2
    return config
"""


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory):
    """A recipe, and weights of its model under the names of the official program."""
    folder = tmp_path_factory.mktemp("downloaded")
    (folder / "tiny.py").write_text(RECIPE)
    config = load_config(str(folder / "tiny.py"))

    variables = random_variables(build_model(config.model), (64, 64))
    write_state_dict(str(folder / "weights.safetensors"), to_state_dict(variables, config.model), False)
    return folder


def reproduce(folder, workdir, *runs):
    """(exit status, stdout, lines on stderr) of scripts/reproduce.py with the arguments of each run."""
    flags = {"model": folder / "tiny.py", "weights": folder / "weights.safetensors", "workdir": workdir}
    program = [str(SCRIPTS / "reproduce.py"), *(f"--{name}={value}" for name, value in flags.items())]
    results = run_all([[*program, *arguments] for arguments in runs], environment())
    return [(status, stdout, error_lines(stderr)) for status, stdout, stderr in results]


@pytest.mark.slow
def test_from_weights_to_a_number(downloaded, tmp_path):
    """The conversion is done once, the evaluation goes on, and the number is that of eval.py."""
    ((status, stdout, errors),) = reproduce(downloaded, tmp_path, ["--expected=99.9"])
    assert status == 1 and not errors, errors
    evaluated = json.loads((tmp_path / "evaluation_single" / "metrics.json").read_text())
    miou = 100 * evaluated["metrics"]["mean_iou"]
    assert 0 < miou < 90 and evaluated["images"] == "6"
    assert f"mIoU {miou:.2f}, expected 99.90 (--expected)" in stdout and "MORE THAN 0.2" in stdout
    assert not json.loads((tmp_path / "result_single.json").read_text())["reached"]

    weights = sorted(path for path in (tmp_path / "checkpoint").rglob("*") if path.is_file())
    written = [path.stat().st_mtime_ns for path in weights]
    near = f"--expected={miou + 0.15}"
    ((status, stdout, errors), (strict, *_)) = reproduce(downloaded, tmp_path, [near], [near, "--tolerance=0.1"])
    assert status == 0 and not errors and "6 of them are done" in stdout and "is within 0.2" in stdout
    assert [path.stat().st_mtime_ns for path in weights] == written
    result = json.loads((tmp_path / "result_single.json").read_text())
    assert strict == 1 and not result["reached"] and result["mean_iou"] == miou and result["images"] == 6

    # An interruption between conversion and its record: the conversion is done again.
    (tmp_path / "weights.json").unlink()
    assert reproduce(downloaded, tmp_path, [near])[0][0] == 0
    assert json.loads((tmp_path / "result_single.json").read_text())["reached"]


@pytest.mark.slow
def test_mistakes_are_one_line(downloaded, tmp_path):
    shutil.copy(downloaded / "weights.safetensors", tmp_path / "other.safetensors")
    with (tmp_path / "other.safetensors").open("ab") as file:
        file.write(b"\0")
    mistakes = (
        (["--expected=1", f"--weights={tmp_path / 'other.safetensors'}"], "holds another model, or other weights"),
        ([], "nobody has published its mIoU (single); give --expected, or one of ade20k:r50"),
        (["--model=cityscapes:r50", "--multi_scale"], "nobody has published its mIoU (multi-scale)"),
        (["--model=ade20k:r52"], "no variant 'r52'"),
        (["--model=ade21k:r50"], "ade21k.py"),
        (["--weights="], "--weights is needed"),
        (["--tolerance=-1"], "tolerance"),
        (["--expected=1", f"--weights={tmp_path / 'none.pth'}"], "none.pth"),
    )
    first, *others = reproduce(
        downloaded, tmp_path / "run", ["--expected=1"], *(arguments for arguments, _ in mistakes)
    )
    assert first[0] == 1, first
    for (arguments, words), (status, _, errors) in zip(mistakes, others, strict=True):
        assert status == 2 and len(errors) == 1 and words in errors[0], (arguments, errors)


# Figures of models


def measure(tmp_path, *flags):
    """(exit status, stdout, lines on stderr) of scripts/measure_models.py for R50."""
    program = [str(SCRIPTS / "measure_models.py"), "--recipes=r50", "--programs=forward_1", "--dtype=float32"]
    program += [f"--folder={tmp_path / 'programs'}", f"--output={tmp_path / 'models.json'}", *flags]
    ((status, stdout, stderr),) = run_all([program], environment())
    return status, stdout, error_lines(stderr)


@pytest.mark.slow
def test_models_are_measured_once(tmp_path):
    """The figures are those of `fasseg summary`; a second run has nothing to do, and another size no place there."""
    status, stdout, errors = measure(tmp_path, "--side=64")
    assert status == 0 and not errors and "not measured: nothing" in stdout, (stdout, errors)
    figures = json.loads((tmp_path / "models.json").read_text())
    assert (figures["side"], figures["machine"]["dtype"]) == (64, "float32")
    model = figures["models"]["ade20k:r50"]
    summary = summarize(load_config("configs/ade20k.py:r50"), (64, 64))
    assert (model["parameters"], model["multiply_adds"]) == (summary.parameters, summary.multiply_adds)
    forward = model["programs"]["forward_1"]
    assert 0 < forward["min_s"] <= forward["median_s"] <= forward["max_s"] and forward["peak_mb"] > 170  # the weights

    status, stdout, _ = measure(tmp_path, "--side=64")
    assert status == 0 and "measure r50" not in stdout and json.loads((tmp_path / "models.json").read_text()) == figures
    status, _, errors = measure(tmp_path, "--side=128")
    assert status == 1 and "is of side 64 in float32; name another file by --output" in errors[-1]
