"""The look at all data: counts equal those of plain loops, and every problem is reported."""

import io

import numpy as np
from rich.console import Console

from fasseg_jax.data import data_classes, open_source
from fasseg_jax.data.check import SplitReport, check_data, print_reports
from fasseg_jax.data.classes import ClassTable
from tests.helpers.data_cases import folder_config, shapes_config, write_folder, write_image
from tests.helpers.markup import MARKUP


def printed(reports, config) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_reports(reports, data_classes(config.data), console)
    return console.file.getvalue()


def test_counts(tmp_path):
    config = folder_config(write_folder(tmp_path / "data"))
    one_pixel = np.full((40, 52), 255, np.uint8)
    one_pixel[3, 4] = 1
    write_image(tmp_path / "data/annotations/training/0.png", one_pixel)
    for report in check_data(config):
        source = open_source(config, report.split)
        maps = [source[index].labels for index in range(len(source))]
        assert report.problems == () and report.num_images == len(maps)
        for number in range(3):
            assert report.pixels[number] == sum((labels == number).sum() for labels in maps)
            assert report.images[number] == sum((labels == number).any() for labels in maps)
        assert report.ignored_pixels == sum((labels == 255).sum() for labels in maps)
        assert report.classes_per_image.tolist() == [len(set(labels.ravel()) - {255}) for labels in maps]
    assert check_data(config)[0].sizes == ((33, 64), (48, 70))


def test_shapes_are_well():
    config = shapes_config()
    reports = check_data(config)
    assert [report.num_images for report in reports] == [10, 3]
    text = printed(reports, config)
    assert "No problems found." in text
    share = 100 * reports[0].pixels[3] / reports[0].pixels.sum()
    row = next(line for line in text.splitlines() if "triangle" in line)
    assert f"{share:.2f}%" in row


def test_problems(tmp_path):
    root = write_folder(tmp_path / "data")
    config = folder_config(root)
    (root / "annotations/training/0.png").unlink()
    (root / "images/training/1.jpg").unlink()
    write_image(root / "annotations/training/2.png", np.zeros((9, 9), np.uint8))
    write_image(root / "annotations/training/3.png", np.full((33, 70), 7, np.uint8))
    (root / "images/training/4.jpg").write_bytes(b"?")
    (root / "annotations/validation/0.png").unlink()
    config.model.num_classes = 5
    training, validation = reports = check_data(config)
    expected = [
        "num_classes is 5, but the data have 3",
        "0.jpg has no label map",
        "1.png has no photo",
        "2.jpg is 50x50 pixels, its label map",
        "3.png: holds the id 7",
        "4.jpg: cannot be read",
    ]
    assert len(training.problems) == len(expected)
    text = printed(reports, config)
    for part, problem in zip(expected, training.problems, strict=True):
        assert part in problem and problem in text
    assert training.num_images == 0 and training.pixels.sum() == 0
    assert len(validation.problems) == 1 and "0.jpg has no label map" in validation.problems[0]
    assert "No problems" not in text


def test_more_classes_than_targets(tmp_path):
    config = folder_config(write_folder(tmp_path / "data"))
    config.data.max_targets = 2
    training, validation = check_data(config)
    assert training.problems == ("up to 3 classes in an image: set --config.data.max_targets=3, it is 2",)
    assert validation.problems == ()


def test_names_with_markup_are_printed_as_they_are():
    """Names of classes, and problems and notes, which name files."""
    ones = np.ones(len(MARKUP), np.int64)
    problems = tuple(f"{name}: cannot be read" for name in MARKUP[:10])
    notes = tuple(f"class {name} never occurs" for name in MARKUP)
    report = SplitReport("training", problems, 1, ((1, 1), (1, 1)), ones, 0, ones, ones[:1], notes)
    console = Console(file=io.StringIO(), width=200)
    print_reports([report], ClassTable(MARKUP, np.zeros((len(MARKUP), 3), np.uint8)), console)
    lines = console.file.getvalue().splitlines()
    for class_id, name in enumerate(MARKUP):
        assert any(f" {class_id} " in line and f" {name} " in line for line in lines), name
        assert f"training: class {name} never occurs" in lines
    for problem in problems:
        assert f"training: {problem}" in lines
