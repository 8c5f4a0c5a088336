import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from flax import traverse_util

from fasseg_jax.weights.checkpoint import load_checkpoint
from fasseg_jax.weights.convert import convert
from fasseg_jax.weights.state_dict import convert_backbone, convert_state_dict
from fasseg_jax.weights.torch_files import read_state_dict
from tests.helpers import ROOT
from tests.helpers.tiny import tiny_config
from tests.helpers.weight_cases import official_state_dict, tiny_state_dict


def assert_same(actual, expected):
    actual, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    for path, value in actual.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)


def save_torch(state_dict, file):
    torch.save({"model": {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in state_dict.items()}}, file)


def test_model(tmp_path):
    config = tiny_config()
    state_dict = tiny_state_dict(config)
    save_torch(state_dict, tmp_path / "weights.pth")
    summary = convert(config, str(tmp_path / "weights.pth"), str(tmp_path / "out"))
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.contents == "model" and checkpoint.config == config
    assert checkpoint.classes.names[0] == "road"
    assert_same(checkpoint.variables, convert_state_dict(state_dict, config.model))
    assert "19 (cityscapes)" in summary and f"fasseg predict --checkpoint {tmp_path / 'out'}" in summary


@pytest.mark.slow
def test_imagenet_backbone(tmp_path):
    config = tiny_config()
    backbone = {name[9:]: v for name, v in tiny_state_dict(config).items() if name.startswith("backbone.")}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"model": backbone, "matching_heuristics": True}))
    summary = convert(config, str(tmp_path / "R-50.pkl"), str(tmp_path / "out"))
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.contents == "backbone" and "fasseg predict" not in summary
    assert_same(checkpoint.variables, convert_backbone(backbone, config.model))
    with pytest.raises(ValueError, match="R-50.pkl: holds only a backbone, .* --new_class_head"):
        convert(config, str(tmp_path / "R-50.pkl"), str(tmp_path / "other"), new_class_head=True)


@pytest.mark.slow
def test_new_class_head_for_other_classes(tmp_path):
    config = tiny_config()
    save_torch(tiny_state_dict(config), tmp_path / "weights.pth")
    (tmp_path / "mine.csv").write_text("id,r,g,b,name\n0,1,2,3,cat\n1,4,5,6,dog\n")
    config.model.num_classes = 2
    arguments = (str(tmp_path / "weights.pth"), str(tmp_path / "out"))
    with pytest.raises(ValueError, match="num_classes is 2, but the data have 19 classes"):
        convert(config, *arguments, new_class_head=True)
    config.data.dataset = str(tmp_path / "mine.csv")
    convert(config, *arguments, new_class_head=True)
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.classes.names == ("cat", "dog")
    assert checkpoint.variables["params"]["decoder"]["class_embed"]["kernel"].shape == (32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_becomes_a_file_of_the_official_program(tmp_path, suffix):
    config = tiny_config("swin")
    state_dict = tiny_state_dict(config)
    save_torch(state_dict, tmp_path / "weights.pth")
    convert(config, str(tmp_path / "weights.pth"), str(tmp_path / "out"))
    file = tmp_path / "files" / f"again{suffix}"
    summary = convert(None, str(tmp_path / "out"), str(file))
    assert f"written     {file}" in summary
    back = read_state_dict(file)
    assert back.keys() == state_dict.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, state_dict[name], err_msg=name)
    assert [other.name for other in file.parent.iterdir()] == [file.name]

    with pytest.raises(FileExistsError, match=f"again{suffix}: exists; name another file or pass --overwrite"):
        convert(None, str(tmp_path / "out"), str(file))
    convert(None, str(tmp_path / "out"), str(file), overwrite=True)
    with pytest.raises(ValueError, match="written as .safetensors or .pth"):
        convert(None, str(tmp_path / "out"), str(tmp_path / "again"))


def test_options_that_do_not_go_together(tmp_path):
    config = tiny_config()
    save_torch(tiny_state_dict(config), tmp_path / "weights.pth")
    file, out = str(tmp_path / "weights.pth"), str(tmp_path / "out")
    with pytest.raises(ValueError, match="weights.pth: --config is needed"):
        convert(None, file, out)
    with pytest.raises(ValueError, match="--hugging_face needs a checkpoint; convert this to one first"):
        convert(config, file, out, hugging_face=True)
    convert(config, file, out)
    with pytest.raises(ValueError, match="leave out --config and --new_class_head"):
        convert(config, out, str(tmp_path / "back.pth"))
    with pytest.raises(ValueError, match="transformers has only Mask2Former, not FASeg"):
        convert(None, out, str(tmp_path / "theirs"), hugging_face=True)
    with pytest.raises(ValueError, match="not a checkpoint directory"):
        convert(None, str(tmp_path), str(tmp_path / "back.pth"))


@pytest.mark.slow
def test_command_line(tmp_path):
    """The README's command converts a whole model; mistakes in later attempts end without tracebacks."""
    state_dict = official_state_dict("faseg_r50_ade20k")
    save_torch(state_dict, tmp_path / "weights.pth")

    def run(*more):
        command = [sys.executable, "convert.py", "--config", "configs/ade20k.py:r50"]
        command += ["--weights", str(tmp_path / "weights.pth"), "--output", str(tmp_path / "out"), *more]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    first = run("--config.inference.short_side=300")
    assert first.returncode == 0, first.stderr
    assert first.stderr == "" and "50.5M parameters" in first.stdout and "150 (ade20k)" in first.stdout
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.config.inference.short_side == 300
    assert_same(checkpoint.variables, convert_state_dict(state_dict, checkpoint.config.model))

    for more, message in (
        ((), "out: the directory is not empty"),
        (("--config.model.num_classes=3",), "num_classes is 3, but the data have 150 classes"),
    ):
        again = run(*more)
        assert again.returncode == 1 and again.stdout == ""
        assert again.stderr.startswith("convert.py: ") and message in again.stderr
        assert "Traceback" not in again.stderr
