"""Label maps of every kind, and photos that EXIF turns: ids and orientation are right, or the file is refused."""

import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.config import ConfigError
from fasseg_jax.data import DataError, images, open_source
from fasseg_jax.data.class_files import folder_classes
from fasseg_jax.data.images import PhotoError, open_photo
from fasseg_jax.data.labels import count_labels, decode_labels, decode_sample, label_table, map_labels
from tests.helpers.data_cases import folder_config, write_folder, write_image

# What a camera stores for an upright scene, by the EXIF standard: the orientation says where the first stored row and
# column belong.
STORE = {
    1: lambda scene: scene,
    2: lambda scene: scene[:, ::-1],
    3: lambda scene: scene[::-1, ::-1],
    4: lambda scene: scene[::-1],
    5: lambda scene: scene.swapaxes(0, 1),
    6: lambda scene: np.rot90(scene),
    7: lambda scene: scene.swapaxes(0, 1)[::-1, ::-1],
    8: lambda scene: np.rot90(scene, -1),
}
KINDS = {"png": {}, "tiff": {}, "webp": {"lossless": True}, "jpeg": {"quality": 98}}


def encoded(values: np.ndarray, kind: str = "png", orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    with_exif = {"exif": exif} if orientation != 1 else {}
    Image.fromarray(np.ascontiguousarray(values)).save(buffer, kind, **with_exif, **options)
    return buffer.getvalue()


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo without any symmetry, and its labels: 1 where it is bright."""
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 4, : width // 3] = 1
    return np.stack([labels * 255] * 3, -1), labels


def agreement(image: np.ndarray, labels: np.ndarray) -> float:
    return float(((image[..., 0] > 127) == (labels == 1)).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(48, 64), (48, 48)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_lie_on_the_photo_in_every_orientation(tmp_path, orientation, size, kind):
    photo, labels = scene(*size)
    file = encoded(STORE[orientation](photo), kind, orientation, **KINDS[kind])
    (tmp_path / "photo").write_bytes(file)
    for setting in ("auto", "viewer"):
        sample = decode_sample(file, labels, "photo", "labels", setting)
        np.testing.assert_array_equal(sample.image, open_photo(tmp_path / "photo"))
        assert agreement(sample.image, labels) > 0.97
    cannot_tell = orientation in (2, 3, 4) or (orientation > 4 and size[0] == size[1])
    sample = decode_sample(file, labels, "photo", "labels")
    assert sample.orientation == ("none" if orientation == 1 else "either" if cannot_tell else "viewer")

    on_stored = np.ascontiguousarray(STORE[orientation](labels))
    for setting in ("stored",) if cannot_tell else ("stored", "auto"):
        sample = decode_sample(file, on_stored, "photo", "labels", setting)
        assert agreement(sample.image, on_stored) > 0.97
        assert sample.orientation == ("none" if orientation == 1 else "stored")


@pytest.mark.parametrize("setting", ["auto", "viewer", "stored"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_label_map_with_the_photos_exif_turns_with_it(orientation, setting):
    photo, labels = scene(48, 64)
    files = [encoded(STORE[orientation](values), "png", orientation) for values in (photo, labels)]
    decoded = decode_labels(files[1], "labels", stored=setting == "stored")
    assert agreement(decode_sample(files[0], decoded, "photo", "labels", setting).image, decoded) == 1


def test_no_such_label_orientation(tmp_path):
    config = folder_config(write_folder(tmp_path / "data"))
    config.data.label_orientation = "exif"
    with pytest.raises(ConfigError, match="label_orientation is 'exif'; choose one of auto, viewer, stored"):
        open_source(config, "training")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
def test_tiff(dtype, compression):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (9, 7), dtype, endpoint=True)
    decoded = decode_labels(encoded(values, "tiff", compression=compression), "file")
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, values)


def test_big_endian_tiff():
    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    buffer = io.BytesIO()
    Image.frombytes("I;16B", (30, 20), values.astype(">u2").tobytes()).save(buffer, "tiff")
    decoded = decode_labels(buffer.getvalue(), "file")
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("kind", ["bmp", "gif", "tiff"])
@pytest.mark.parametrize("colors", [None, 5, 16, 256])
def test_one_channel_of_other_formats(kind, colors):
    """Without a palette, and with one whose colors are not in the order of the ids."""
    values = np.random.default_rng(0).integers(0, colors or 256, (9, 7), np.uint8)
    image = Image.fromarray(values)
    if colors:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 3 * colors, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"optimize": False} if kind == "gif" else {}))
    np.testing.assert_array_equal(decode_labels(buffer.getvalue(), "file"), values)


def several_pages(kind: str) -> bytes:
    pages = [Image.fromarray(np.full((8, 8), page, np.uint8)) for page in range(2)]
    buffer = io.BytesIO()
    pages[0].save(buffer, kind, save_all=True, append_images=pages[1:])
    return buffer.getvalue()


def white_is_zero() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(buffer, "tiff", tiffinfo={262: 0})
    return buffer.getvalue()


SMOOTH = np.full((16, 16), 12, np.uint8)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (encoded(SMOOTH, "jpeg"), "JPEG picture, whose compression changes ids"),
        (encoded(SMOOTH, "jpeg2000"), "JPEG2000 picture, whose compression changes ids"),
        (encoded(np.stack([SMOOTH] * 3, -1), "webp"), "WEBP picture, whose compression changes ids"),
        (encoded(SMOOTH, "tiff", compression="jpeg"), "TIFF whose compression changes ids"),
        (encoded(SMOOTH, "ppm"), "holds a PPM picture"),  # decoders scale some of them
        (several_pages("tiff"), "several pages"),
        (several_pages("gif"), "several pages"),
        (white_is_zero(), "counts from white"),
        (encoded(SMOOTH.astype(np.int32), "tiff"), "mode I"),
        (encoded(SMOOTH.astype(np.float32), "tiff"), "mode F"),
        (encoded(SMOOTH > 0, "bmp"), "fewer than 8 bits"),
        (encoded(SMOOTH > 0, "tiff"), "fewer than 8 bits"),
    ],
)
def test_formats_whose_ids_are_not_certain_are_refused(file, what):
    with pytest.raises(DataError, match=f"labels.png: .*{what}"):
        decode_labels(file, "labels.png")


@pytest.mark.parametrize(
    ("grays", "certain"),
    [
        ([0, 1, 2, 255], False),  # ids that a program for smaller files has packed
        ([0, 2, 5], False),
        ([3, 0, 1], False),
        ([0, 1, 2, 3], True),
        ([0, 255], True),  # to be seen: 1 is white
        ([0, 85, 170, 255], True),
    ],
)
def test_gray_palettes(grays, certain):
    values = np.random.default_rng(0).integers(0, len(grays), (9, 7), np.uint8)
    image = Image.fromarray(values)
    image.putpalette(np.repeat(np.array(grays, np.uint8), 3).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "png")
    if certain:
        np.testing.assert_array_equal(decode_labels(buffer.getvalue(), "file"), values)
    else:
        with pytest.raises(DataError, match="palette of grays .* probably the ids"):
            decode_labels(buffer.getvalue(), "file")


def test_a_gray_gif_whose_ids_were_packed():
    values = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (9, 7))
    with pytest.raises(DataError, match="palette of grays"):
        decode_labels(encoded(values, "gif"), "file")


def test_folder_finds_label_maps_of_other_formats(tmp_path):
    root = write_folder(tmp_path / "data")
    folder = root / "annotations/training"
    for number, ending in ((0, ".tif"), (1, ".BMP"), (2, ".gif"), (3, ".jpg")):
        image = Image.open(folder / f"{number}.png")
        if ending == ".gif":  # a gray GIF would number its grays anew
            image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
        image.save(folder / f"{number}{ending}", **({"optimize": False} if ending == ".gif" else {}))
        (folder / f"{number}.png").unlink()
    write_image(folder / "4.jpg", np.zeros((3, 3), np.uint8))  # a PNG of this name is there
    source = open_source(folder_config(root), "training")
    for index in (0, 1, 2, 4):
        expected = np.random.default_rng(index)
        shape = source[index].labels.shape
        expected.integers(0, 256, (*shape, 3), np.uint8)
        np.testing.assert_array_equal(source[index].labels, expected.choice(np.array([0, 1, 2, 255], np.uint8), shape))
    with pytest.raises(DataError, match=r"3\.jpg: holds a JPEG picture"):
        source[3]


def test_names_in_several_unicode_forms(tmp_path):
    root = write_folder(tmp_path / "data")
    for folder, name, ending in (
        ("images", "stra\u00dfe-\u00fc", ".jpg"),
        ("annotations", "stra\u00dfe-u\u0308", ".png"),
    ):
        file = next((root / folder / "training").glob("1.*"))
        file.rename(file.with_name(name + ending))
    assert len(open_source(folder_config(root), "training")) == 5
    # Both forms of one name, each with its partner, stay two samples.
    for folder, ending in (("images", ".jpg"), ("annotations", ".png")):
        for name in ("\u00e9", "e\u0301"):
            write_image(root / folder / "training" / (name + ending), np.zeros((8, 8), np.uint8))
    assert len(open_source(folder_config(root), "training")) == 7


def test_large_images_need_no_default_limit_of_pillow(tmp_path, monkeypatch):
    """The limit is ours in training too, without a warning, and Pillow's own returns."""
    photo, labels = scene(60, 80)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 80 // 3)  # Pillow refuses what is over twice as large
    with warnings.catch_warnings(action="error"):
        decoded = decode_labels(encoded(labels), "labels")
        sample = decode_sample(encoded(photo), decoded, "photo", "labels")
    np.testing.assert_array_equal(sample.image, photo)
    np.testing.assert_array_equal(decoded, labels)
    assert Image.MAX_IMAGE_PIXELS == 60 * 80 // 3
    monkeypatch.setattr(images, "MAX_PIXELS", 60 * 80 - 1)
    with pytest.raises(DataError, match="labels: cannot be read .*million pixels"):
        decode_labels(encoded(labels), "labels")
    with pytest.raises(DataError, match="photo: cannot be read .*million pixels"):
        decode_sample(encoded(photo), labels, "photo", "labels")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_counting_and_mapping_in_blocks(monkeypatch, dtype):
    monkeypatch.setattr("fasseg_jax.data.labels.BLOCK", 50)
    values = np.random.default_rng(0).integers(0, 9, (23, 17)).astype(dtype)
    counts = count_labels(values)
    assert len(counts) == np.iinfo(dtype).max + 1 and counts.sum() == values.size
    np.testing.assert_array_equal(counts[:9], [(values == value).sum() for value in range(9)])
    np.testing.assert_array_equal(map_labels(values, label_table(9, 255), "file"), values)


def test_pipes_and_devices_are_refused(tmp_path):
    root = write_folder(tmp_path / "data")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PhotoError, match="pipe.png: is a pipe or a device"):
        open_photo(tmp_path / "pipe.png")
    with pytest.raises(PhotoError, match="is a pipe or a device"):
        open_photo("/dev/zero")
    for folder in ("images", "annotations"):
        source = open_source(folder_config(root), "training")
        file = next((root / folder / "training").glob("0.*"))
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(DataError, match=f"{folder}/training/0.*: cannot be read .is a pipe or a device"):
            source[0]
    (root / "classes.txt").unlink()
    os.mkfifo(root / "classes.txt")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read .is a pipe or a device"):
        folder_classes(root)


TXT, CSV = "0 Straße 1 2 3\n", "id,name,r,g,b\n0,Straße,1,2,3\n"


@pytest.mark.parametrize(("file", "text"), [("classes.txt", TXT), ("classes.csv", CSV)])
def test_encodings_of_class_tables(tmp_path, file, text):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # the last with a byte order mark
        (tmp_path / file).write_text(text, encoding)
        assert folder_classes(tmp_path).names == ("Straße",)
    for encoding in ("cp1252", "utf-16-le", "utf-16-be", "utf-32"):
        (tmp_path / file).write_text(text, encoding)
        with pytest.raises(DataError, match=f"{file}.*no UTF-8 text.*save the file in UTF-8"):
            folder_classes(tmp_path)


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "1.5", "²", ""])
def test_numbers_in_class_tables(tmp_path, number):
    (tmp_path / "classes.csv").write_text(f"id,name,r,g,b\n0,road,1,2,{number}\n")
    with pytest.raises(DataError, match="line 2: r, g, b must be whole numbers"):
        folder_classes(tmp_path)


def test_a_class_table_that_is_no_csv(tmp_path):
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n0," + "x" * 200_000 + ",1,2,3\n")
    with pytest.raises(DataError, match=r"classes\.csv, line .*is no CSV"):
        folder_classes(tmp_path)
