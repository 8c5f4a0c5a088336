"""The command lines of all programs: --help, --version, and mistakes, which end with one line and status 2."""

import pytest
from PIL import Image

import fasseg_jax
from tests.helpers.programs import run_all

pytestmark = pytest.mark.slow  # every test starts a process

RECIPE = "--config=configs/ade20k.py:r50"
NEEDED = {  # program -> arguments that it needs besides --config
    "train.py": [],
    "eval.py": ["--checkpoint=absent"],
    "predict.py": ["--untrained", "--output=absent"],
    "convert.py": ["--weights=absent", "--output=absent"],
    "fasseg_jax.summary": [],
    "fasseg_jax.data.tfds": ["--output=absent"],
    "fasseg_jax.demo": None,  # has no --config
    "fasseg_jax.importing": None,
    "fasseg_jax.export": None,
    "fasseg_jax.training.curves": None,
}
MISTAKES = {  # arguments -> what the line says
    ("--config=absent.py",): "absent.py",
    ("--config=configs/ade20k.py:r5",): "r5",
    (RECIPE, "--config.data.rot=x"): "--config.data.rot: there is no such field",
    (RECIPE, "--config.train.steps=many"): "train.steps",
}


def test_help_version_and_mistakes():
    mistakes = [([program, "--no_such_flag=1"], "no_such_flag") for program in NEEDED]
    mistakes += [
        ([program, *arguments, *needed], message)
        for program, needed in NEEDED.items()
        if needed is not None
        for arguments, message in MISTAKES.items()
    ]
    results = run_all([[program, flag] for program in NEEDED for flag in ("--help", "--version")])
    for program, usage, version in zip(NEEDED, results[::2], results[1::2], strict=True):
        assert usage[0] == 0 and usage[1] and not usage[2], (program, usage)
        assert version == [0, f"fasseg_jax {fasseg_jax.__version__}\n", ""], program
    results = run_all([command_line for command_line, _ in mistakes])
    for (command_line, message), (status, _, errors) in zip(mistakes, results, strict=True):
        assert status == 2, (command_line, errors)
        assert message in errors and errors.count("\n") == 1, (command_line, errors)
        name = command_line[0].removesuffix(".py").rpartition(".")[2]
        assert errors.partition(": ")[0].removesuffix(".py") == name, (command_line, errors)


def test_pictures_go_with_the_check(tmp_path):
    data = ["--config=configs/shapes.py", "--config.data.shapes.training=12", "--config.data.shapes.validation=5"]
    pictures = f"--pictures={tmp_path}"
    (status, output, errors), mistake = run_all(
        [["train.py", *data, "--check", pictures], ["train.py", *data, pictures]]
    )
    assert status == 0, errors
    for split in ("training", "validation"):
        assert f"{split}: samples with their labels are in {tmp_path}/{split}.png" in output
        Image.open(tmp_path / f"{split}.png").verify()
    assert mistake == [2, "", "train.py: --pictures goes with --check\n"]
