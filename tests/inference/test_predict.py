"""predict.py as a user runs it, in a process of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.classes import load_classes
from fasseg_jax.inference.segmenter import Segmenter
from fasseg_jax.visualization.overlay import draw_overlay
from fasseg_jax.weights.checkpoint import save_checkpoint
from tests.helpers import ROOT, error_lines
from tests.helpers.tiny import photo, tiny_model

pytestmark = pytest.mark.slow  # every test starts a process

# Runs predict.main for each command line of a JSON list: [[status, stderr], ...]
MANY_RUNS = """
import contextlib, io, json, sys
from absl.testing import flagsaver
from fasseg_jax.programs import predict
from fasseg_jax.runtime.command_line import parse_flags
predict.define_flags()
results = []
for arguments in json.load(sys.stdin):
    errors = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = predict.main(parse_flags(["predict.py", *arguments]))
        except SystemExit as end:
            status = end.code
    results.append([status, errors.getvalue()])
print(json.dumps(results))
"""


def run(command, folder, more=(), **options):
    environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(folder / "cache"), PYTHONPATH=str(ROOT), **dict(more))
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, **options)


def predict(folder, *arguments):
    return run([sys.executable, ROOT / "predict.py", "--device", "cpu", *arguments], folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(folder, *tiny_model(), load_classes("cityscapes"))
    return folder


def test_folder_of_photos(checkpoint, tmp_path):
    photos = {"a.png": photo(70, 100), "a.bmp": photo(64, 96, 1), "sub/a.png": photo(20, 31, 2)}
    for name, image in photos.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / name)
    odd = ["new\nline.jpg", "escape\x1b[2J.jpg", os.fsdecode("Straße.jpg".encode("latin-1"))]
    for name in odd:
        Image.fromarray(photo(64, 96, 1)).save(tmp_path / "photos" / name)
    long = "x" * 245
    (tmp_path / "photos/broken.jpg").write_bytes(b"not a photo")
    (tmp_path / f"photos/{long}.jpg").write_bytes((tmp_path / "photos" / odd[0]).read_bytes())
    (tmp_path / "photos/damaged\x1b[2J.jpg").write_bytes(b"")
    (tmp_path / "photos/notes.txt").touch()
    result = predict(tmp_path, "--checkpoint", checkpoint, "--input", "photos", "--output", "out", "--scores")
    assert result.returncode == 1, result.stderr
    assert "skipped photos/broken.jpg: not a picture" in result.stderr
    assert rf"3 of 9 photos were skipped: photos/broken.jpg, photos/damaged\x1b[2J.jpg, photos/{long}" in result.stderr
    assert f"skipped photos/{long}.jpg: the name is too long" in result.stderr
    assert r"skipped photos/damaged\x1b[2J.jpg: " in result.stderr and "\x1b" not in result.stderr + result.stdout
    assert "9 photos in photos, 1 other files ignored" in result.stdout
    assert "Traceback" not in result.stderr
    assert any((tmp_path / "cache").iterdir())
    assert result.stderr.count("Compiling the network for 64x96 pixels") == 1  # for all three

    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    kinds = ("labels.png", "overlay.png", "scores.npy")
    for name in odd:
        assert (tmp_path / "out" / f"{name[:-4]}_labels.png").is_file()
        for kind in kinds:
            (tmp_path / "out" / f"{name[:-4]}_{kind}").unlink()
    written = [name for name in written if (tmp_path / "out" / name).exists()]
    names = {"a.png": "a.png", "a.bmp": "a.bmp", "sub/a.png": "sub/a"}
    assert written == sorted(f"{name}_{kind}" for name in names.values() for kind in kinds)
    segmenter = Segmenter.from_checkpoint(checkpoint)
    for name, image in photos.items():
        expected = segmenter(image, scores=True)
        stem = tmp_path / "out" / names[name]
        labels = np.asarray(Image.open(f"{stem}_labels.png"))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected.labels)
        overlay = draw_overlay(image, expected.labels, segmenter.classes)
        np.testing.assert_array_equal(np.asarray(Image.open(f"{stem}_overlay.png")), np.asarray(overlay))
        scores = np.load(f"{stem}_scores.npy")
        assert scores.dtype == np.float16
        np.testing.assert_allclose(scores, expected.scores, rtol=1e-3, atol=1e-4)


def test_devices_share_the_photos(checkpoint, tmp_path):
    """Three devices, each with a photo at a time; five photos of a size and one of another."""
    sizes = [(64, 96)] * 5 + [(70, 64)]
    (tmp_path / "photos").mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(photo(*size, i)).save(tmp_path / f"photos/{i}.png")
    command = [sys.executable, ROOT / "predict.py", "--device=cpu", "--checkpoint", checkpoint]
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}
    result = run([*command, "--input=photos", "--output=out"], tmp_path, more=devices)
    assert result.returncode == 0, result.stderr
    assert "Computing on 3 x cpu" in result.stdout
    segmenter = Segmenter.from_checkpoint(checkpoint)
    for i, size in enumerate(sizes):
        labels = np.asarray(Image.open(tmp_path / f"out/{i}_labels.png"))
        np.testing.assert_array_equal(labels, segmenter(photo(*size, i)).labels)


@pytest.mark.parametrize(
    ("arguments", "inference", "dtype"),
    [
        (["--multi_scale"], {"mode": "multi_scale"}, None),
        (["--sliding_window", "--short_side=80"], {"mode": "sliding", "sliding": {"short_side": 80}}, None),
        (["--round_to=128", "--dtype=bfloat16"], {"round_to": 128}, "bfloat16"),
    ],
)
def test_ways_to_predict(checkpoint, tmp_path, arguments, inference, dtype):
    image = photo(90, 130)
    Image.fromarray(image).save(tmp_path / "photo.png")
    result = predict(tmp_path, "--checkpoint", checkpoint, "--input", "photo.png", "--output", "out", *arguments)
    assert result.returncode == 0, result.stderr
    segmenter = Segmenter.from_checkpoint(checkpoint, inference=inference, dtype=dtype)
    labels = np.asarray(Image.open(tmp_path / "out/photo_labels.png"))
    np.testing.assert_array_equal(labels, segmenter(image).labels)
    assert f"{len(segmenter.input_shapes)} shapes of the network's input" in result.stdout


def test_untrained_model_and_generated_picture(tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text("from tests.helpers.tiny import tiny_config as get_config\n")
    result = predict(tmp_path, "--untrained", "--config", config, "--config.inference.short_side=32", "--output", "out")
    assert result.returncode == 0, result.stderr
    assert "UNTRAINED" in result.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "generated.png",
        "generated_labels.png",
        "generated_overlay.png",
    }
    generated = Image.open(tmp_path / "out/generated.png")
    assert Image.open(tmp_path / "out/generated_labels.png").size == generated.size
    legend = np.asarray(Image.open(tmp_path / "out/generated_overlay.png"))[generated.height :]
    assert (legend == (190, 20, 30)).all(-1).any()  # the warning


def test_mistakes_end_with_one_line(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "labelme").mkdir()
    (tmp_path / "notes.txt").write_text("no photo")
    model = ["--device=cpu", f"--checkpoint={checkpoint}"]
    usage = [  # arguments, what the error says
        (["--checkpoint=c", "--input=i"], "--output is needed"),
        (["--input=empty", "--output=o"], "give --checkpoint, or --untrained"),
        (["--checkpoint=c", "--untrained", "--output=o"], "give --checkpoint, or --untrained"),
        (["--untrained", "--output=o"], "--untrained needs --config"),
        (["--checkpoint=c", "--output=o"], "--input is needed"),
        (["--checkpoint=c", "--input=i", "--output=o", "--multi_scale", "--sliding_window"], "two ways to predict"),
        (["--checkpoint=c", "--input=i", "--output=o", "--short_side=0"], "goes with --sliding_window"),
        (["--checkpoint=c", "--input=i", "--output=o", "--short_side=-1"], "short_side"),
        ([*model, "--input=notes.txt", "--output=o", "--round_to=48"], "config.inference.round_to"),
        (["--checkpoint=c", "--input=i", "--output=o", "photo.jpg"], "unexpected argument 'photo.jpg'"),
        (["--checkpoint=c", "--input=absent.jpg", "--output=o"], "absent.jpg: there is no such file"),
        (["--checkpoint=c", "--input=empty", "--output=o"], "holds no photos"),
        (["--checkpoint=c", "--input=empty", "--output=empty"], "must not be the --input folder"),
        (["--checkpoint=c", "--input=empty", "--output=notes.txt"], "notes.txt is a file"),
        (["--checkpoint=c", "--input=i.mp4", "--output=o", "--write_labels=coco"], "are for photos, not for videos"),
        (["--checkpoint=c", "--input=i", "--output=o", "--write_labels=voc"], "write_labels"),
        (["--checkpoint=c", "--input=i", "--output=.", "--write_labels=labelme"], "perhaps with corrected labels"),
        (["--output=o", "--device=abacus"], "abacus"),
        (["--output=o", "--dtype=float16"], "float16"),
        (["--no_such_flag"], "no_such_flag"),
        (["--untrained", "--config=absent.py", "--output=o"], "absent.py"),
        (["--checkpoint=absent", "--device=cpu", "--input=notes.txt", "--output=o"], "absent: no such checkpoint"),
    ]
    failures = [  # nothing that can be read, nowhere to write
        ([*model, "--input=notes.txt", "--output=o"], "1 of 1 photos were skipped: notes.txt"),
    ]
    lines = [arguments for arguments, _ in usage + failures]
    result = run([sys.executable, "-c", MANY_RUNS], tmp_path, input=json.dumps(lines))
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    for (arguments, message), (status, errors) in zip(usage, results[: len(usage)], strict=True):
        assert status == 2, arguments
        assert message in errors, arguments
        assert errors.count("\n") == 1, errors
    for (arguments, message), (status, errors) in zip(failures, results[len(usage) :], strict=True):
        assert status == 1, arguments
        assert message in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("kilobytes", "flag", "file"),
    [
        (0, "--scores", "a_labels.png"),
        (16, "--scores", "a_overlay.png"),
        (400, "--explain", "a_explanation.png"),
        (400, "--scores", "a_scores.npy"),
    ],
)
def test_a_full_disk_ends_with_one_line(checkpoint, tmp_path, kilobytes, flag, file):
    """A limit on the size of files takes the place of a full disk."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 300, 3), np.uint8)).save(tmp_path / "a.png")
    program = [sys.executable, ROOT / "predict.py", "--device=cpu", f"--checkpoint={checkpoint}", "--input=a.png"]
    limited = ["bash", "-c", f'ulimit -f {kilobytes} && exec "$@"', "bash"]
    result = run([*limited, *program, "--output=out", flag], tmp_path)
    assert result.returncode == 1
    *notes, line = error_lines(result.stderr)
    assert line.startswith(f"predict.py: cannot write out/{file}: ")
    assert all("compiled programs are not kept" in note for note in notes), notes
    assert not (tmp_path / "out" / file).exists() and not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("kind", ["labelme", "coco"])
def test_predictions_become_labels_to_correct(checkpoint, tmp_path, kind):
    """The printed command imports them; the least certain photo comes first."""
    photos = {"a.png": photo(70, 100), "sub/b.png": photo(64, 96, 1)}
    for name, image in photos.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / name)
    result = predict(
        *(tmp_path, "--checkpoint", checkpoint, "--input", "photos", "--output", "out", "--write_labels", kind)
    )
    assert result.returncode == 0, result.stderr
    (command,) = [line.split() for line in result.stdout.splitlines() if line.startswith("  fasseg import ")]
    imported = run([sys.executable, "-m", "fasseg_jax", *command[1:]], tmp_path)
    assert imported.returncode == 0 and "Wrote 2 photos" in imported.stdout, imported.stdout + imported.stderr
    for name in photos:
        (file,) = (tmp_path / "DATA/annotations").glob(f"*/{name}")
        predicted = Image.open(tmp_path / "out" / name.replace(".png", "_labels.png"))
        np.testing.assert_array_equal(Image.open(file), predicted)
    segmenter = Segmenter(*tiny_model())
    uncertainty = {f"photos/{name}": segmenter(image, uncertainty=True).uncertainty for name, image in photos.items()}
    lines = (tmp_path / "out/to_correct.csv").read_text().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == sorted(uncertainty, key=uncertainty.get, reverse=True)
    np.testing.assert_allclose(
        [float(line.split(",")[1]) for line in lines], sorted(uncertainty.values())[::-1], atol=2e-6
    )
