"""Label files that mean something else than the configuration says: `--check` and training notice."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fasseg_jax.config import load_config
from fasseg_jax.data import DataError, open_source
from fasseg_jax.data.check import check_data, print_reports
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.data.plausibility import look_at_labels
from tests.helpers.data_cases import small_crops, write_image


def folder(tmp_path, ids, num_classes=2, num_images=3, reduce_zero_label=False, orientation=1, size=(12, 12)):
    """A configuration of data whose label maps hold `ids`, each in as many pixels."""
    (tmp_path / "classes.txt").write_text("".join(f"{number} class{number} 0 0 0\n" for number in range(num_classes)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("training", "validation"):
        for index in range(num_images):
            labels = np.resize(np.array(ids, np.uint8), size)
            write_image(tmp_path / f"annotations/{split}/{index}.png", labels)
            photo = np.zeros((*size, 3), np.uint8)
            write_image(tmp_path / f"images/{split}/{index}.jpg", photo, **({"exif": exif} if orientation > 1 else {}))
    config = small_crops(load_config(f"configs/folder.py:{tmp_path}"))
    config.data.reduce_zero_label = reduce_zero_label
    return config


def said(config) -> tuple[str, bool]:
    """What `--check` prints in one line, and whether there are problems."""
    reports = check_data(config)
    console = Console(file=io.StringIO(), width=120)
    print_reports(reports, open_source(config, "training").classes, console)
    text = " ".join(console.file.getvalue().split())
    return text, any(report.problems for report in reports)


@pytest.mark.parametrize(
    ("ids", "num_classes", "reduce_zero_label", "message"),
    [
        (
            [0, 255],
            2,
            False,
            "class 0 'class0' and ignored pixels (255).*in masks of 0 and 255, save 255 as 1",
        ),
        ([1, 255], 2, False, "only the class 1 'class1' and ignored pixels"),
        ([0, 255], 9, False, "only the class 0 'class0' and ignored pixels"),
        ([0], 2, False, "only the class 0 'class0', so that"),
        ([0, 1], 2, True, "only the class 0 'class0' and ignored pixels"),
        ([255], 2, False, r"all pixels of all label maps are ignored \(config.data.ignore_label = 255\)"),
        ([0, 255], 2, True, "all pixels .*, and 0 by config.data.reduce_zero_label"),
        ([0, 1], 1, True, "there is one class, 'class0', .* ignored.*without config.data.reduce_zero_label"),
        ([0, 255], 1, False, "there is one class, 'class0', .* ignored"),
        ([0], 1, False, "there is one class, 'class0', .* absent"),
    ],
)
def test_useless_labels_are_refused(tmp_path, ids, num_classes, reduce_zero_label, message):
    config = folder(tmp_path, ids, num_classes, reduce_zero_label=reduce_zero_label)
    message = message.replace("(255)", r"\(255\)")
    with pytest.raises(DataError, match=message):
        look_at_labels(open_source(config, "training"), config.data)
    for report in check_data(config):
        assert len(report.problems) == 1
        with pytest.raises(DataError, match=message):
            raise DataError(report.problems[0])
    assert "No problems" not in said(config)[0]


@pytest.mark.parametrize(
    ("ids", "reduce_zero_label", "message"),
    [
        ([0, 1], False, "the class 2 'class2': check the ids in label files, or take the class out of"),
        ([1, 2], False, "the class 0 'class0': .* if 0 stands for nothing .* set config.data.reduce_zero_label=True"),
        ([0, 1, 2], True, "the class 2 'class2': .* begin at 0, leave out config.data.reduce_zero_label"),
    ],
)
def test_classes_that_never_occur_are_named(tmp_path, ids, reduce_zero_label, message):
    config = folder(tmp_path, ids, num_classes=3, reduce_zero_label=reduce_zero_label)
    (line,) = look_at_labels(open_source(config, "training"), config.data)
    notes = [report.notes for report in check_data(config)]
    for text in (line, *notes[0], *notes[1]):
        with pytest.raises(DataError, match=f"no label map holds {message}"):
            raise DataError(text)
    text, problems = said(config)
    assert "No mistakes found; see the notes above." in text and not problems


def test_an_empty_background_is_no_reason_to_shift_ids(tmp_path):
    config = folder(tmp_path, [1, 2], num_classes=3)
    (tmp_path / "classes.txt").write_text("background\ncar\nroad\n")
    (line,) = look_at_labels(open_source(config, "training"), config.data)
    assert "the class 0 'background': no harm if all is annotated" in line
    assert "reduce_zero_label" not in line


def test_all_is_well(tmp_path):
    config = folder(tmp_path, [0, 1, 255])
    assert look_at_labels(open_source(config, "training"), config.data) == []
    text, problems = said(config)
    assert "No problems found." in text and not problems


def test_one_map_of_many_is_enough_to_see_a_class(tmp_path, monkeypatch):
    """A class in the last of many label maps: all of them are read before the data are called useless."""
    monkeypatch.setattr("fasseg_jax.data.plausibility.LOOKED_AT", 2)
    config = folder(tmp_path, [0, 255], num_classes=3, num_images=12)
    source = open_source(config, "training")
    last = np.random.default_rng(0).permutation(12)[-1]
    write_image(tmp_path / f"annotations/training/{last}.png", np.ones((12, 12), np.uint8))
    (line,) = look_at_labels(source, config.data)
    assert "no label map holds the class 2" in line
    for index in range(12):
        write_image(tmp_path / f"annotations/training/{index}.png", np.resize(np.array([0, 1], np.uint8), (12, 12)))
    assert "of 2 label maps, no one holds the class 2" in look_at_labels(source, config.data)[0]


def test_unreadable_samples_are_left_to_the_training(tmp_path):
    config = folder(tmp_path, [0, 1])
    source = open_source(config, "training")
    for index in range(3):
        (tmp_path / f"images/training/{index}.jpg").write_bytes(b"?")
    assert look_at_labels(source, config.data) == []


def test_ignored_maps_are_counted(tmp_path):
    config = folder(tmp_path, [0, 1])
    write_image(tmp_path / "annotations/training/1.png", np.full((12, 12), 255, np.uint8))
    text, problems = said(config)
    assert "training: 1 label map holds ignored pixels only, e.g." in text and not problems


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(12, 12), (12, 16)])
def test_orientations_that_sizes_cannot_confirm_are_named(tmp_path, orientation, size):
    config = folder(tmp_path, [0, 1], orientation=orientation, size=size)
    cannot_tell = orientation in (2, 3, 4) or (orientation > 4 and size[0] == size[1])
    message = "training: 3 photos have an EXIF orientation that their label map's size cannot confirm"
    assert (message in said(config)[0]) == cannot_tell
    if cannot_tell:
        for setting in ("viewer", "stored"):
            config.data.label_orientation = setting
            assert "EXIF" not in said(config)[0]


def test_other_label_maps_are_evidence_of_the_orientation(tmp_path):
    config = folder(tmp_path, [0, 1], orientation=6, size=(12, 16))  # fits the stored pixels only
    exif = Image.Exif()
    exif[0x0112] = 3
    write_image(tmp_path / "images/training/0.jpg", np.zeros((12, 16, 3), np.uint8), exif=exif)
    text, _ = said(config)
    assert "stored pixels (2 other label maps of this split are), set --config.data.label_orientation=stored" in text
    exif[0x0112] = 6
    write_image(tmp_path / "images/training/0.jpg", np.zeros((16, 12, 3), np.uint8), exif=exif)
    assert "1 have the size of the turned photo" in said(config)[0]


@pytest.mark.parametrize("source", ["folder", "shapes"])
def test_ignore_label_is_a_class(tmp_path, source):
    config = folder(tmp_path, [0, 1])
    if source == "shapes":
        config.data.update(source="shapes", dataset="shapes")
    config.data.ignore_label = 1
    with pytest.raises(DataError, match="ignore_label = 1 must be no class id"):
        open_source(config, "training")
    assert all("ignore_label = 1" in " ".join(report.problems) for report in check_data(config))


def test_class_names_are_printed_as_they_are(tmp_path):
    config = folder(tmp_path, [0, 1])
    names = ("road [front]", "a[/]b [red]")
    console = Console(file=io.StringIO(), width=120)
    classes = dataclasses.replace(open_source(config, "training").classes, names=names)
    print_reports(check_data(config), ClassTable(names, classes.palette), console)
    assert all(name in console.file.getvalue() for name in names)
