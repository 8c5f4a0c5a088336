"""Contact sheets: samples pixel by pixel as a training gets them, ignored pixels striped, and what cannot be drawn."""

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data import TrainingBatches, open_source
from fasseg_jax.data.check import check_data
from fasseg_jax.data.classes import ClassTable
from fasseg_jax.data.samples import SPLITS
from fasseg_jax.runtime.files import WriteError
from fasseg_jax.visualization.contact_sheet import LAYOUT, PAIR_GAP, SheetSample, draw_contact_sheet, samples_per_row
from fasseg_jax.visualization.data_pictures import write_data_pictures
from fasseg_jax.visualization.overlay import OPACITY
from fasseg_jax.visualization.text import WARNING_RED, load_font, shorten
from tests.helpers.data_cases import folder_config, shapes_config, write_folder
from tests.helpers.full_disk import limited_files

TOP = LAYOUT.margin + 2 * LAYOUT.row  # of the first row of samples


def write_pictures(config, folder):
    lines = write_data_pictures(config, check_data(config), folder)
    return lines, {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


def panels(sheet, height, width):
    """The first sample without and with labels, where it is enlarged to (height, width)."""
    left = LAYOUT.margin
    return [sheet[TOP : TOP + height, x : x + width] for x in (left, left + width + PAIR_GAP)]


def shows(picture, color):
    return (picture == np.asarray(color)).all(-1).any()


def test_samples_are_those_of_the_training(tmp_path):
    config = shapes_config()
    config.data.max_targets = 1  # fewer than in the crops: `check_data` says so, and the pictures show why
    _, sheets = write_pictures(config, tmp_path)
    config.data.max_targets = 6
    batch = TrainingBatches(open_source(config, "training"), config, config.train.seed)[0]
    image, labels = (array[0].repeat(6, 0).repeat(6, 1) for array in (batch.images, batch.labels))
    plain, overlay = panels(sheets["training"], *labels.shape)
    np.testing.assert_array_equal(plain, image)
    palette = open_source(config, "training").classes.palette
    class_id = np.bincount(labels[labels < 6]).argmax()
    inside = labels == class_id
    for axis in (0, 1):  # away from borders
        for step in (1, -1):
            inside &= np.roll(labels == class_id, step, axis)
    assert inside.sum() > 100
    expected = (1 - OPACITY) * image + OPACITY * palette[class_id]
    np.testing.assert_allclose(overlay[inside], expected[inside], atol=0.51)
    ignored = overlay[labels == 255].astype(int)
    assert len(ignored) and np.ptp(ignored.mean(axis=1)) > 60  # stripes


def test_validation_photos_are_whole(tmp_path):
    config = shapes_config()
    lines, sheets = write_pictures(config, tmp_path)
    assert lines == [f"{split}: samples with their labels are in {tmp_path}/{split}.png" for split in SPLITS]
    image = open_source(config, "validation")[0].image
    found, _ = panels(sheets["validation"], 4 * image.shape[0], 4 * image.shape[1])
    np.testing.assert_array_equal(found, image.repeat(4, 0).repeat(4, 1))


def test_the_legend_holds_all_classes(tmp_path):
    config = shapes_config()
    _, sheets = write_pictures(config, tmp_path)
    for sheet in sheets.values():
        assert all(shows(sheet[-3 * LAYOUT.row :], color) for color in open_source(config, "training").classes.palette)


def test_samples_that_cannot_be_read_are_left_out(tmp_path):
    root = write_folder(tmp_path / "data")
    config = folder_config(root)
    for number in range(4):
        (root / f"images/training/{number}.jpg").write_bytes(b"?")
    (root / "annotations/validation").rename(root / "annotations/elsewhere")
    lines, sheets = write_pictures(config, tmp_path / "pictures")
    assert sheets.keys() == {"training"}
    assert lines[0] == f"training: samples with their labels are in {tmp_path}/pictures/training.png"
    assert lines[1].startswith("validation: no picture, because ") and str(root) in lines[1]
    (root / "images/training/4.jpg").write_bytes(b"?")
    lines, _ = write_pictures(config, tmp_path / "none")
    assert lines[0] == "training: no picture, because none of its first samples can be read"


@pytest.mark.parametrize("size", [(512, 512), (512, 1024), (32, 64), (1024, 32), (1, 1), (1500, 2000)], ids=str)
@pytest.mark.parametrize("labels", ["one class", "ignored", "all"])
def test_any_sample_can_be_drawn(size, labels):
    rng = np.random.default_rng(0)
    num_classes = 150
    classes = ClassTable(
        tuple(f"class {number}" * 3 for number in range(num_classes)), rng.integers(0, 200, (150, 3), np.uint8)
    )
    values = {"one class": np.full(size, 3), "ignored": np.full(size, 255), "all": np.arange(np.prod(size)) % 150}
    sample = SheetSample(
        "folder/" * 40 + "a.jpg", np.full((*size, 3), 90, np.uint8), values[labels].reshape(size).astype(np.uint8)
    )
    report = check_data(shapes_config())[0]
    report = type(report)(**vars(report) | {"pixels": np.arange(150), "images": np.ones(150, int)})
    sheet = np.asarray(draw_contact_sheet("Title", [sample] * 2, classes, report, size))
    assert (sheet[:, -10:] == 255).all() and (sheet[:, :10] == 255).all()  # nothing is cut off
    assert shows(sheet, WARNING_RED) == (labels == "ignored")
    assert samples_per_row(size) >= 1


def test_no_samples_no_sheet():
    assert draw_contact_sheet("Title", [], ClassTable(("a",), np.zeros((1, 3), np.uint8)), None, (32, 32)) is None


def test_a_full_disk_is_named(tmp_path):
    config = shapes_config()
    reports = check_data(config)
    with limited_files(1000), pytest.raises(WriteError, match=f"cannot write {tmp_path}/training.png"):
        write_data_pictures(config, reports, tmp_path)


def test_texts_are_cut_where_a_search_letter_by_letter_cuts_them():
    font = load_font(14)
    text = "road, sky, Wiese, iiii, 道路, WWW, " * 3
    for width in (0, 1, 10, 40, 100, 333, 1e4):
        expected = text
        if font.getlength(text) > width:
            while expected and font.getlength(expected + "…") > width:
                expected = expected[:-1]
            expected = expected.rstrip(" ,;") + "…"
        assert shorten(text, font, width) == expected
