"""Folder data sets: what is read, and the message for each mistake."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.config import ConfigError, load_config
from fasseg_jax.data import DataError, find_source, open_source
from fasseg_jax.data.class_files import folder_classes
from fasseg_jax.data.classes import load_classes
from fasseg_jax.data.labels import decode_labels, decode_sample, file_ids, label_table, map_labels
from tests.helpers.data_cases import CLASSES, SIZES, folder_config, write_folder, write_image


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "my data")


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def test_reads_pairs(root):
    config = folder_config(root)
    assert config.model.num_classes == 3
    source = open_source(config, "training")
    assert len(source) == 5 and len(open_source(config, "validation")) == 2
    assert source.classes.names == ("sky", "street sign", "road")
    np.testing.assert_array_equal(source.classes.palette, [(10, 20, 30), (40, 50, 60), (255, 0, 0)])
    for index, (height, width) in enumerate(SIZES):
        sample = source[index]
        assert sample.image.shape == (height, width, 3)
        photo = Image.open(root / f"images/training/{index}.jpg")
        np.testing.assert_array_equal(sample.image, np.asarray(photo))
        np.testing.assert_array_equal(sample.labels, np.asarray(Image.open(root / f"annotations/training/{index}.png")))
        assert sample.name == str(root / f"images/training/{index}.jpg")


def test_subfolders_and_extensions(root):
    for name in ("a/x.PNG", "b/x.webp"):
        write_image(root / "images/training" / name, np.zeros((8, 8, 3), np.uint8))
    for number, name in enumerate(("a/x.png", "b/x.PNG")):
        write_image(root / "annotations/training" / name, np.full((8, 8), number, np.uint8))
    source = open_source(folder_config(root), "training")
    labels = {sample.name.split("training/")[1]: sample.labels[0, 0] for sample in map(source.__getitem__, (5, 6))}
    assert labels == {"a/x.PNG": 0, "b/x.webp": 1}


def test_reduce_zero_label_and_ignored(root):
    values = np.array([[0, 1, 2], [3, 255, 3]], np.uint8)
    write_image(root / "annotations/training/0.png", values)
    write_image(root / "images/training/0.jpg", np.zeros((2, 3, 3), np.uint8))
    config = folder_config(root)
    config.data.reduce_zero_label = True
    np.testing.assert_array_equal(open_source(config, "training")[0].labels, [[255, 0, 1], [2, 255, 2]])


@pytest.mark.parametrize(
    ("ignore_label", "reduce", "raw", "expected"),
    [
        (255, False, [0, 254, 255], [0, 254, 255]),  # K = 255 leaves one value of 8 bits
        (65535, True, [0, 1, 255, 65535], [65535, 0, 254, 65535]),
        (300, False, [0, 254, 300], [0, 254, 300]),
    ],
)
def test_label_table(ignore_label, reduce, raw, expected):
    raw = np.array([raw], np.uint8 if max(raw) <= 255 else np.uint16)
    labels = map_labels(raw, label_table(255, ignore_label, reduce), "file")
    assert labels.dtype == (np.uint8 if ignore_label <= 255 else np.uint16)
    np.testing.assert_array_equal(labels, [expected])


@pytest.mark.parametrize(("ignore_label", "reduce"), [(254, False), (255, True), (0, False), (65536, False)])
def test_ignore_label_must_be_no_class(ignore_label, reduce):
    with pytest.raises(DataError, match=f"ignore_label = {ignore_label} must be no class id.*choose (255|65535)"):
        label_table(255, ignore_label, reduce)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_decode_labels_keeps_ids(dtype):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 7), dtype, endpoint=True)
    decoded = decode_labels(png(values), "file")
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("colors", [2, 4, 16, 256])
def test_palette_png_is_read_as_indices(colors):
    values = np.random.default_rng(0).integers(0, colors, (9, 7), np.uint8)
    image = Image.fromarray(values)
    image.putpalette(np.random.default_rng(1).integers(0, 256, 3 * colors, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "png", bits=int(np.log2(colors)))
    np.testing.assert_array_equal(decode_labels(buffer.getvalue(), "file"), values)


def gray_png_of_few_bits(bits: int) -> bytes:
    """A gray PNG of `bits` bits, which Pillow does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    row = bytes([0]) + bytes(range(bits))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (png(np.zeros((4, 4, 3), np.uint8)), "mode RGB"),
        (png(np.zeros((4, 4), bool)), "fewer than 8 bits"),
        (gray_png_of_few_bits(2), "fewer than 8 bits"),
        (gray_png_of_few_bits(4), "fewer than 8 bits"),
        (b"no picture", "unknown format"),
        (b"", "unknown format"),
        (png(np.random.default_rng(0).integers(0, 9, (99, 99), np.uint8))[:2000], "cannot be read"),
    ],
)
def test_uncertain_label_maps_are_refused(file, what):
    with pytest.raises(DataError, match=f"labels.png.*{what}"):
        decode_labels(file, "labels.png")


def rotated_jpeg(orientation: int) -> tuple[bytes, np.ndarray]:
    """A photo of 16x8 pixels as stored, and its stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", exif=exif)
    return buffer.getvalue(), np.asarray(Image.open(buffer))


def test_exif_orientation_follows_the_label_map():
    file, stored = rotated_jpeg(6)
    as_stored = decode_sample(file, np.zeros((8, 16), np.uint8), "photo", "labels")
    np.testing.assert_array_equal(as_stored.image, stored)
    turned = decode_sample(file, np.zeros((16, 8), np.uint8), "photo", "labels")
    np.testing.assert_array_equal(turned.image, np.rot90(stored, -1))  # 6: to be turned clockwise
    upside_down, stored = rotated_jpeg(3)  # the size cannot tell: as predict.py shows it
    sample = decode_sample(upside_down, np.zeros((8, 16), np.uint8), "photo", "labels")
    np.testing.assert_array_equal(sample.image, stored[::-1, ::-1])
    with pytest.raises(DataError, match="photo is 16x8 pixels, its label map labels 8x16"):
        decode_sample(rotated_jpeg(1)[0], np.zeros((16, 8), np.uint8), "photo", "labels")
    with pytest.raises(DataError, match="photo is .* pixels, its label map labels 9x8"):
        decode_sample(file, np.zeros((8, 9), np.uint8), "photo", "labels")


def test_gray_and_transparent_photos_become_rgb(root):
    values = np.random.default_rng(0).integers(0, 256, (40, 52), np.uint8)
    (root / "images/training/0.jpg").unlink()
    write_image(root / "images/training/0.png", np.dstack([values] * 4))
    sample = open_source(folder_config(root), "training")[0]
    np.testing.assert_array_equal(sample.image, np.dstack([values] * 3))


def corrupt_photo(root):
    file = root / "images/training/1.jpg"
    file.write_bytes(file.read_bytes()[:400])
    return r"1\.jpg: cannot be read as a picture"


def empty_photo(root):
    (root / "images/training/1.jpg").write_bytes(b"")
    return r"1\.jpg: cannot be read as a picture \(unknown format\)"


def larger_label_map(root):
    write_image(root / "annotations/training/1.png", np.zeros((65, 48), np.uint8))
    return r"1\.jpg is 48x64 pixels, its label map .*1\.png 48x65"


def unknown_ids(root):
    write_image(root / "annotations/training/1.png", np.full((64, 48), 3, np.uint8))
    return r"1\.png: holds the id 3, but only 0 to 2, 255 are known"


def many_unknown_ids(root):
    write_image(root / "annotations/training/1.png", np.arange(64 * 48, dtype=np.uint16).reshape(64, 48))
    return r"1\.png: holds the ids 3, 4, 5, 6, 7, 8, 9, 10 and 3060 others"


def vanished_file(root):
    return r"1\.jpg: cannot be read \(No such file"


@pytest.mark.parametrize(
    "spoil", [corrupt_photo, empty_photo, larger_label_map, unknown_ids, many_unknown_ids, vanished_file]
)
def test_a_spoiled_sample_is_named(root, spoil):
    message = spoil(root)
    source = open_source(folder_config(root), "training")
    if spoil is vanished_file:
        (root / "images/training/1.jpg").unlink()
    assert source[0].image.shape  # the others can be read
    with pytest.raises(DataError, match=message):
        source[1]


def no_label_map(root):
    (root / "annotations/training/2.png").unlink()
    return r"2\.jpg has no label map; `fasseg check`"


def no_photo(root):
    (root / "images/training/2.jpg").unlink()
    return r"2\.png has no photo"


def two_photos(root):
    write_image(root / "images/training/2.png", np.zeros((50, 50, 3), np.uint8))
    return r"2\.jpg and .*2\.png have the same name"


def several(root):
    no_photo(root)
    (root / "annotations/training/3.png").unlink()
    return r"3\.jpg has no label map, and 1 more such problems"


def no_folder(root):
    (root / "annotations/training").rename(root / "annotations/elsewhere")
    return r"training/0\.jpg has no label map, and 9 more such problems"


def empty_split(root):
    for file in (root / "images/training").iterdir():
        file.unlink()
    return r"annotations/training/0\.png has no photo, and 4 more such problems"


@pytest.mark.parametrize("spoil", [no_label_map, no_photo, two_photos, several, no_folder, empty_split])
def test_a_spoiled_folder_is_refused(root, spoil):
    config = folder_config(root)
    message = spoil(root)
    with pytest.raises(DataError, match=message):
        open_source(config, "training")
    assert len(open_source(config, "validation")) == 2


def test_configuration_mistakes(root):
    config = folder_config(root)
    config.model.num_classes = 4
    with pytest.raises(DataError, match="num_classes is 4, but the data have 3 classes"):
        open_source(config, "training")
    config = folder_config(root)
    config.data.source = "folders"
    with pytest.raises(ConfigError, match="data.source is 'folders'; choose one of folder, cityscapes, tfds, shapes"):
        open_source(config, "training")
    with pytest.raises(DataError, match="no split is called 'test'"):
        open_source(folder_config(root), "test")
    with pytest.raises(DataError, match="config.data.root is empty"):
        open_source(load_config("configs/ade20k.py:r50"), "training")
    with pytest.raises(ValueError, match="name the folder"):
        load_config("configs/folder.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 sky 1 2 3\n2 road 1 2 3\n", "line 2: expected '1 NAME R G B'"),
        ("0 sky 1 2\n", "line 1"),
        ("0 sky 1 2 256\n", "line 1"),
        ("sky\nsky\n", "the class name 'sky' is there twice"),
        ("0 sky\n2 road\n", "line 2: expected '1 NAME' or '1 NAME R G B'"),
        ("sky\n1 road 1 2 3\n", "line 1: expected '0 NAME R G B'"),
        ("0,sky,1,2,3\n", "line 1: '0,sky,1,2,3' is no name, but a row of a table"),
        ("0 1 2 3\n", "line 1"),
        ("\n", "holds no classes"),
        ("0 sky 1 2 3\n1 \x1b[2Jroad 1 2 3\n", "classes.txt, line 2: the name '\\x1b[2Jroad' holds control characters"),
        ("0 \x07 1 2 3\n", "line 1: the name '\\x07' holds control characters"),
    ],
)
def test_mistakes_in_classes(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        folder_classes(tmp_path)


def test_classes_csv_and_none(tmp_path):
    with pytest.raises(DataError, match="holds no photos with label maps"):
        folder_classes(tmp_path)
    (tmp_path / "classes.txt").write_text(CLASSES)
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n0,first,1,2,3\n")
    assert folder_classes(tmp_path).names == ("first",)
    (tmp_path / "classes.csv").write_text('id,name,r,g,b\n0,"two\nlines",1,2,3\n')
    with pytest.raises(DataError, match=r"classes.csv, line 3: .* holds control characters"):
        folder_classes(tmp_path)


# The label ids of Cityscapes' 19 evaluated classes, from the data set's published list of labels.
EVALUATED = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def cityscapes(root, ending: str, values: np.ndarray):
    for split in ("train", "val"):
        photo = root / f"leftImg8bit/{split}/ulm/ulm_000_leftImg8bit.png"
        write_image(photo, np.zeros((*values.shape, 3), np.uint8))
        write_image(root / f"gtFine/{split}/ulm/ulm_000_gtFine_color.png", np.zeros((*values.shape, 3), np.uint8))
        write_image(root / f"gtFine/{split}/ulm/ulm_000_gtFine{ending}.png", values)
    config = load_config("configs/cityscapes.py:r50")
    config.data.update(source="cityscapes", root=str(root))
    source = open_source(config, "validation")
    np.testing.assert_array_equal(source.file_ids, EVALUATED)  # whichever files the labels come from
    return source[0].labels


def test_cityscapes(tmp_path):
    label_ids = np.arange(34, dtype=np.uint8)[None]
    expected = [EVALUATED.index(label_id) if label_id in EVALUATED else 255 for label_id in range(34)]
    np.testing.assert_array_equal(cityscapes(tmp_path, "_labelIds", label_ids), [expected])
    with pytest.raises(DataError, match="ulm_000_gtFine_labelIds.png: holds the id 34"):
        cityscapes(tmp_path, "_labelIds", np.full((1, 34), 34, np.uint8))
    train_ids = np.r_[np.arange(19), [255] * 15].astype(np.uint8)[None]
    np.testing.assert_array_equal(cityscapes(tmp_path, "_labelTrainIds", train_ids), train_ids)


def test_submissions_are_written_in_the_ids_of_the_label_files(root):
    ade20k, shapes = (load_config(name).data for name in ("configs/ade20k.py:r50", "configs/shapes.py"))
    np.testing.assert_array_equal(file_ids(ade20k, load_classes("ade20k")), np.arange(1, 151))
    np.testing.assert_array_equal(find_source(shapes, "validation").file_ids, np.arange(6))
    config = folder_config(root)
    np.testing.assert_array_equal(open_source(config, "validation").file_ids, [0, 1, 2])
    config.data.reduce_zero_label = True
    np.testing.assert_array_equal(open_source(config, "validation").file_ids, [1, 2, 3])
