"""The command lines of all programs: --help, --version, and mistakes, which end with one line and status 2."""

import re
import subprocess
import sys

import pytest
from PIL import Image

import fasseg_jax
from fasseg_jax.programs.commands import COMMANDS
from tests.helpers import ROOT
from tests.helpers.programs import run_all

pytestmark = pytest.mark.slow  # every test starts a process

RECIPE = "--config=configs/ade20k.py:r50"
NEEDED = {  # program -> arguments that it needs besides --config; None: it has no --config
    "train.py": [],
    "eval.py": ["--checkpoint=absent"],
    "predict.py": ["--untrained", "--output=absent"],
    "convert.py": ["--weights=absent", "--output=absent"],
    "fasseg_jax.summary": [],
    "fasseg_jax.data.tfds": ["--output=absent"],
    "fasseg_jax.serving": None,
    "fasseg_jax.demo": None,
    "fasseg_jax.importing": None,
    "fasseg_jax.export": None,
    "fasseg train": [],
    "fasseg eval": ["--checkpoint=absent"],
    "fasseg predict": ["--untrained", "--output=absent"],
    "fasseg convert": ["--weights=absent", "--output=absent"],
    "fasseg check": [],
    "fasseg import": None,
    "fasseg export": None,
    "fasseg serve": None,
    "fasseg demo": None,
    "fasseg summary": [],
    "fasseg curves": None,
    "fasseg_jax.training.curves": None,
}
MISTAKES = {  # arguments -> what the line says
    ("--config=absent.py",): "absent.py",
    ("--config=configs/ade20k.py:r5",): "r5",
    ("--config=ade21k:r50",): "there are ade20k, camvid, cityscapes",
    (RECIPE, "--config.data.rot=x"): "--config.data.rot: there is no such field",
    (RECIPE, "--config.train.steps=many"): "train.steps",
}


def test_the_commands_are_listed_without_importing_jax():
    program = "import sys; sys.argv[1:] = ['--help']; from fasseg_jax.programs.commands import main; main()"
    program += "; assert not {'jax', 'flax', 'numpy', 'ml_collections'} & sys.modules.keys()"
    listed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.help)}$", listed.stdout, re.M), name


def test_there_is_no_such_command():
    cases = [["fasseg", "trian"], ["fasseg", "--confg=x"], ["fasseg", "curve\n"], ["fasseg"], ["fasseg", "--version"]]
    trian, flag, curve, nothing, version = run_all(cases)
    assert trian == [2, "", "fasseg: there is no command 'trian'; did you mean train?\n"]
    assert flag[0] == 2 and flag[2].startswith("fasseg: there is no command '--confg=x'; choose one of train, eval, ")
    assert curve[0] == 2 and curve[2].count("\n") == 1
    assert nothing[0] == 0 and nothing[1].startswith("FASeg in JAX")
    assert version == [0, f"fasseg_jax {fasseg_jax.__version__}\n", ""]


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
        name = command_line[0] if command_line[0].endswith(".py") else command_line[0].rpartition(".")[2]
        assert errors.partition(": ")[0].removesuffix(".py") == name.removesuffix(".py"), (command_line, errors)


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
