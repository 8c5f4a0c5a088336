"""`python -m fasseg_jax.importing`: what it prints, its exit status, and that `fasseg check` accepts the result."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.helpers.import_cases import write_json, write_photo

pytestmark = pytest.mark.slow  # every test starts processes


def run(*arguments):
    process = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    return process.returncode, process.stdout, process.stderr


def test_from_labelme_to_check(tmp_path):
    source, output = tmp_path / "annotated", tmp_path / "data"
    for index in range(6):
        write_photo(source / f"{index}.jpg")
        points = [[index, 2], [30, 2], [30, 20 + index], [index, 20]]
        shapes = [{"label": "road", "points": points}, {"label": "car", "points": [[1, 1]]}][: 1 + (index == 3)]
        shapes += [{"label": "car", "points": [[35, 5], [45, 5], [45, 30]]}]
        image = {"imagePath": f"{index}.jpg", "imageHeight": 36, "imageWidth": 48}
        write_json(source / f"{index}.json", {"shapes": shapes} | image)
    command = ("-m", "fasseg_jax.importing", f"--input={source}", f"--output={output}")
    status, printed, errors = run(*command)
    assert status == 0, errors
    lines = printed.splitlines()
    assert lines[0] == f"{source}: labelme JSON files (recognized; --format=labelme)"
    assert "3 classes: background, car, road" in lines
    assert f"{source}/3.json: dropped shape 2 ('car'): has 1 points; a polygon needs 3" in lines
    assert lines[-2] == "Wrote 6 photos with their label maps."
    assert lines[-1] == f"Next: fasseg check --config folder:{output}"
    status, printed, errors = run("-m", "fasseg_jax", "check", f"--config=folder:{output}")
    assert status == 0, printed + errors
    (source / "0.jpg").unlink()
    status, printed, _ = run(*command)
    assert status == 1 and f"problem: {source}/0.json: there is no photo '0.jpg'" in printed


def test_mistakes(tmp_path):
    for arguments, expected, message in (
        ((), 2, "give --input ANNOTATIONS"),
        ((f"--input={tmp_path}", "--output=x", "--format=labelmee"), 2, "choose one of labelme, coco"),
        ((f"--input={tmp_path}", "--output=x", "--classes=absent.txt"), 2, "absent.txt: cannot be read"),
        ((f"--input={tmp_path}", "--output=x", "--photos=absent"), 2, "there is no such folder"),
        ((f"--input={tmp_path}/absent", "--output=x"), 1, "there is no"),
        ((f"--input={tmp_path}", f"--output={tmp_path.with_name('x')}"), 1, "has no format that is known"),
    ):
        status, printed, errors = run("-m", "fasseg_jax.importing", *arguments)
        assert (status, printed, errors.count("\n")) == (expected, "", 1), errors
        assert message in errors
