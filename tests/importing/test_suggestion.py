"""What `train.py --check` says about folders that are not ready to train from."""

import subprocess
import sys

import numpy as np
import pytest

from fasseg_jax.config import load_config
from fasseg_jax.data.folder_layout import LayoutError
from fasseg_jax.data.folder_tree import show_tree
from fasseg_jax.importing.suggestion import suggest_import
from tests.helpers import ROOT
from tests.helpers.data_cases import write_image
from tests.helpers.import_cases import write_json, write_photo


def notes_of(folder):
    with pytest.raises(ValueError) as caught:
        load_config(f"configs/folder.py:{folder}")
    cause = caught.value.__cause__
    assert str(cause) == str(caught.value) and str(folder) in str(cause)
    return cause, getattr(cause, "advice", [])


def test_annotations_of_a_tool_are_offered_the_import(tmp_path):
    folder = tmp_path / "my photos"
    write_photo(folder / "a.jpg")
    write_json(folder / "a.json", {"shapes": [], "imagePath": "a.jpg", "imageHeight": 36, "imageWidth": 48})
    error, notes = notes_of(folder)
    assert "holds 1 photo, such as" in str(error)
    assert notes == [
        "This is there:",
        f"  {folder}/  a.jpg, a.json",
        f"{folder} looks like labelme JSON files. This turns it into a folder to train from:",
        f"  fasseg import --input '{folder}' --output '{folder}-imported'",
    ]


def test_masks_of_colors_are_offered_the_import(tmp_path):
    write_photo(tmp_path / "images/a.jpg")
    write_image(tmp_path / "masks/a.png", np.full((36, 48, 3), (128, 0, 0), np.uint8))
    error, notes = notes_of(tmp_path)
    assert "masks/a.png: is a picture of mode RGB" in str(error)
    assert "looks like photos and masks of colors" in notes[0] and "--input" in notes[1] and len(notes) == 2
    assert suggest_import(tmp_path, readable=True) == []  # label maps with a palette look so too


def test_photos_without_anything(tmp_path):
    write_photo(tmp_path / "holiday/a.jpg")
    error, notes = notes_of(tmp_path)
    assert isinstance(error, LayoutError)
    assert notes[:3] == ["This is there:", f"  {tmp_path}/", "    holiday/  a.jpg"]
    assert notes[3] == "These can be read:" and any("train/masks/NAME.png" in note for note in notes)
    assert not any("importing" in note for note in notes)
    error, notes = notes_of(tmp_path / "absent")
    assert "there is no folder" in str(error) and notes == []


def test_trees_are_short(tmp_path):
    for index in range(40):
        for name in ("1.jpg", "2.JPG", "3.txt", ".hidden"):
            (tmp_path / f"folder{index:02}/below").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"folder{index:02}" / name).write_text("")
    lines = show_tree(tmp_path)
    assert lines[:3] == [f"{tmp_path}/", "  folder00/  2 .jpg, 3.txt", "    below/"]
    assert len(lines) == 14 and lines[-1] == "  ... and 68 more folders"


def test_two_folders_of_label_maps(tmp_path):
    write_photo(tmp_path / "images/a.jpg")
    for name in ("masks", "labels"):
        write_image(tmp_path / name / "a.png", np.zeros((36, 48), np.uint8))
    error, notes = notes_of(tmp_path)
    assert "labels (1 files) and masks (1 files)" in str(error)
    assert "These can be read:" not in notes and "    labels/  a.png" in notes


@pytest.mark.slow
def test_the_program(tmp_path):
    """What was found, the table, and what to run next; or what is wrong, and the import."""

    def check(*arguments):
        command = [sys.executable, "train.py", f"--config=configs/folder.py:{tmp_path}", "--check", *arguments]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        return process.returncode, process.stdout.splitlines(), process.stderr.splitlines()

    for index in range(10):
        write_photo(tmp_path / f"images/p{index}q.jpg")
        write_image(tmp_path / f"masks/p{index}q.png", np.random.default_rng(index).integers(0, 3, (36, 48), np.uint8))
    status, printed, errors = check("--config.data.validation_share=0.4")
    assert status == 0, errors
    assert printed[0].startswith(f"{tmp_path}: ") and "(config.data.validation_share = 0.4)" in printed[0]
    assert "class 0 to class 2" in printed[1]
    assert printed[-2:] == [
        "No problems found.",
        f"Next: python train.py --config=configs/folder.py:{tmp_path} --config.data.validation_share=0.4 "
        f"--workdir runs/{tmp_path.name}",
    ]
    for index in range(10):
        values = np.random.default_rng(index).integers(0, 2, (36, 48), np.uint8)
        write_image(tmp_path / f"masks/p{index}q.png", 255 * values)
    status, printed, errors = check()
    assert status == 1
    assert printed[-2].endswith("looks like photos and masks of 0 and 255. This turns it into a folder to train from:")
    (tmp_path / "masks").rename(tmp_path / "other")
    status, printed, errors = check()
    assert (status, printed) == (2, [])
    assert f"{tmp_path} holds 10 photos, such as" in errors[0] and errors[1] == "  This is there:"
