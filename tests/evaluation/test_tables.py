"""Tables, files and the picture of metrics: every number where it belongs."""

import csv
import io
import json
import os
import re

import numpy as np
import pytest
from rich.console import Console

from fasseg_jax.data.classes import ClassTable
from fasseg_jax.evaluation.evaluate import ImageResult
from fasseg_jax.evaluation.metrics import Counts, metrics_of, most_confused
from fasseg_jax.evaluation.results import write_images
from fasseg_jax.evaluation.tables import print_table, write_csv, write_json
from fasseg_jax.runtime.csv_text import csv_text
from fasseg_jax.visualization.confusion_matrix import confusion_cells, draw_confusion
from tests.helpers import ROOT
from tests.helpers.markup import MARKUP

# Class 0: 6 of 8 right; class 1: 3 of 4; class 2: predicted once, never true; class 3: neither.
CONFUSION = np.array([[6, 1, 1, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
COUNTS = Counts(CONFUSION, np.array([2, 1, 0, 0]), np.array([4, 3, 1, 0]))
CLASSES = ClassTable(
    ("wall", "sky, or Ätherblau", "[bold]odd</script>", "unseen"),
    np.array([[200, 10, 10], [10, 200, 10], [10, 10, 200], [123, 45, 67]], np.uint8),
)


def printed(width):
    file = io.StringIO()
    print_table(metrics_of(COUNTS), CLASSES, Console(file=file, width=width))
    return [line.split() for line in file.getvalue().splitlines() if line.strip()]


def test_terminal_table():
    lines = printed(120)
    rows = [line for line in lines if line[0].isdigit()]
    # Absent classes first, then the best of those in the truth.
    assert [row[0] for row in rows] == ["3", "2", "0", "1"]
    numbers = {row[0]: row[-5:] for row in rows}
    assert numbers["0"] == ["66.67", "50.00", "75.00", "66.67", "58.33"]
    assert numbers["1"] == ["60.00", "33.33", "75.00", "33.33", "33.33"]
    assert numbers["2"] == ["0.00", "0.00", "–", "0.00", "8.33"]
    assert numbers["3"] == ["–", "–", "–", "0.00", "0.00"]
    assert "[bold]odd</script>" in next(row for row in rows if row[0] == "2")
    assert any(line[:2] == ["In", "percent."] for line in lines)
    assert ["mIoU", "63.33"] in lines and ["boundary", "mIoU", "41.67"] in lines
    assert ["pixel", "accuracy", "75.00"] in lines and ["mean", "accuracy", "75.00"] in lines
    assert ["frequency-weighted", "IoU", "64.44"] in lines


def test_terminal_table_fits_narrow_terminals():
    file = io.StringIO()
    print_table(metrics_of(COUNTS), CLASSES, Console(file=file, width=72))
    assert max(map(len, file.getvalue().splitlines())) <= 72
    assert next(row for row in printed(72) if row[0] == "0")[-5:] == ["66.67", "50.00", "75.00", "66.67", "58.33"]


def test_json(tmp_path):
    write_json(tmp_path / "metrics.json", metrics_of(COUNTS), CLASSES, {"images": 3})
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content["images"] == 3
    np.testing.assert_allclose(content["metrics"]["mean_iou"], (6 / 9 + 3 / 5) / 2, rtol=1e-15)
    np.testing.assert_allclose(content["metrics"]["mean_boundary_iou"], (1 / 2 + 1 / 3) / 2, rtol=1e-15)
    assert [entry["name"] for entry in content["classes"]] == list(CLASSES.names)
    assert content["classes"][2] == {
        "id": 2,
        "name": "[bold]odd</script>",
        "iou": 0.0,
        "boundary_iou": 0.0,
        "accuracy": None,
        "truth_share": 0.0,
        "predicted_share": 1 / 12,
    }
    with pytest.raises(ValueError, match="taken.*: classes"):
        write_json(tmp_path / "metrics.json", metrics_of(COUNTS), CLASSES, {"classes": 3})


def test_csv(tmp_path):
    write_csv(tmp_path / "classes.csv", metrics_of(COUNTS), CLASSES)
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["name"] for row in rows] == list(CLASSES.names)
    assert [row["iou"] for row in rows] == ["0.666667", "0.6", "0", ""]
    assert [row["accuracy"] for row in rows] == ["0.75", "0.75", "", ""]
    assert [row["boundary_iou"] for row in rows] == ["0.5", "0.333333", "0", ""]
    assert [row["predicted_share"] for row in rows] == ["0.583333", "0.333333", "0.0833333", "0"]


FORMULAS = [  # what spreadsheets run, with all that they skip before it
    before + sign + "cmd|' /C calc'!A0"
    for before in ("", " ", "  ", "\t", "\r", "\n", "\r\n ", "\xa0", "\u3000", "\ufeff", "\u200b", "\0", "\x1f", "\x85")
    for sign in ("=", "+", "-", "@", "＝", "＋", "－", "＠", "﹢", "﹣", "﹦", "﹫", "−", "⁼", "₊")
] + ["\troad", "\rroad", "\nroad", "=", "-", " @"]
TEXTS = [
    "",
    "road",
    " road",
    "a=b",
    "road - wet",
    "a@b",
    "1+1",
    "'=1",
    "(-1)",
    "–",
    "Ätherblau",
    "道路",
    "~",
    "x\t=1",
    "_=1",
]


def test_texts_cannot_run_as_formulas():
    assert [csv_text(text) for text in FORMULAS] == [f"'{text}" for text in FORMULAS]
    assert [csv_text(text) for text in TEXTS] == TEXTS


def test_no_csv_file_holds_a_formula(tmp_path):
    """Names of classes and of images are what others choose."""
    images = [*FORMULAS, *TEXTS[1:]]
    names = [name for name in images if not re.search(r"[\0-\x08\x0a-\x1f\x85]", name)]  # others are refused
    classes = ClassTable(tuple(names), np.zeros((len(names), 3), np.uint8))
    counts = Counts.zeros(len(names))
    write_csv(tmp_path / "classes.csv", metrics_of(counts), classes)
    results = [ImageResult.from_counts(index, "a", "", counts) for index in range(len(images))]
    write_images(tmp_path / "images.csv", results, dict(enumerate(images)), len(names))
    for file, column, texts in (("classes.csv", "name", names), ("images.csv", "image", images)):
        with (tmp_path / file).open(newline="", encoding="utf-8") as lines:
            cells = [row[column] for row in csv.DictReader(lines)]
        assert cells == [f"'{text}" if text in FORMULAS else text for text in texts]


def test_names_of_files_in_another_encoding(tmp_path):
    name = os.fsdecode("Straße".encode("latin-1"))
    write_images(tmp_path / "images.csv", [ImageResult.from_counts(0, "a", "", COUNTS)], {0: name}, len(CLASSES))
    assert r"Stra\udcdfe" in (tmp_path / "images.csv").read_text(encoding="utf-8")


def test_every_writer_of_csv_guards_its_texts():
    sources = {path.name: path.read_text() for path in (ROOT / "fasseg_jax").rglob("*.py")}
    writers = {name for name, source in sources.items() if "csv.writer" in source or "csv.DictWriter" in source}
    assert writers == {"tables.py", "results.py", "classes.py", "label_files.py"}
    assert writers - {name for name in writers if "csv_text(" in sources[name]} == {"classes.py"}  # read again


def test_names_with_markup_are_printed_as_they_are():
    classes = ClassTable(MARKUP, np.zeros((len(MARKUP), 3), np.uint8))
    file = io.StringIO()
    print_table(metrics_of(Counts.zeros(len(MARKUP))), classes, Console(file=file, width=200))
    for name in MARKUP:
        assert f"■ {name} " in file.getvalue()


def test_most_confused_pairs():
    confusion = np.array([[90, 3, 7], [5, 50, 0], [7, 0, 1]])
    assert most_confused(confusion, 9) == [(0, 2), (2, 0), (1, 0), (0, 1)]
    assert most_confused(confusion, 2) == [(0, 2), (2, 0)]
    assert most_confused(np.diag([3, 4]), 9) == []


def test_confusion_cells():
    cells = confusion_cells(CONFUSION)
    opacity = np.round(255 * np.sqrt(CONFUSION[:2] / [[8], [4]]))
    np.testing.assert_array_equal(cells[:2, :, 3], opacity)
    blue, orange = cells[0, 0, :3], cells[0, 1, :3]
    assert blue[2] > 200 > blue[0] and orange[0] > 200 > orange[2]
    np.testing.assert_array_equal(cells[1, 1, :3], blue)
    np.testing.assert_array_equal(cells[1, 0, :3], orange)
    # Rows of classes that do not occur in the ground truth are gray.
    np.testing.assert_array_equal(cells[2:], np.broadcast_to(cells[2, 0], cells[2:].shape))


@pytest.mark.parametrize("num_classes", [1, 3, 19, 150])
def test_confusion_picture_shows_each_cell(num_classes):
    """Every cell of the matrix is found in the picture, in its place and in its color."""
    rng = np.random.default_rng(0)
    confusion = rng.integers(0, 9, (num_classes, num_classes)) + np.eye(num_classes, dtype=int)
    names = tuple(f"class {i} with rather a long name" for i in range(num_classes))
    picture = np.asarray(draw_confusion(confusion, ClassTable(names, np.zeros((num_classes, 3), np.uint8))))
    cell = min(max(900 // num_classes, 12), 110)
    cells = confusion_cells(confusion).astype(float)
    opacity = cells[..., 3:] / 255
    expected = cells[..., :3] * opacity + 255 * (1 - opacity)
    # The frame's upper left corner: the first row that is dark over the matrix's width.
    dark = (picture == (120, 124, 132)).all(-1)
    top = int(np.argmax(dark.sum(axis=1) >= num_classes * cell))
    left = int(np.argmax(dark[top]))
    # Near each cell's corner: neither on its border nor under its number.
    start = max(2, cell // 10)
    sampled = picture[top + start :: cell, left + start :: cell][:num_classes, :num_classes]
    np.testing.assert_allclose(sampled, expected, atol=1.5)
    # Names are there, and are cut before the edge.
    assert (picture[top : top + num_classes * cell, :left] < 100).any()
    assert (picture[:10] == 255).all() and (picture[:, :10] == 255).all()
