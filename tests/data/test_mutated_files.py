"""Photos, label maps and class tables that are damaged at random: only the project's own errors come out."""

import io

import numpy as np
import pytest
from PIL import Image

from fasseg_jax.data.class_files import folder_classes
from fasseg_jax.data.classes import ClassTable, DataError, load_classes, write_classes
from fasseg_jax.data.images import PhotoError, open_photo
from fasseg_jax.data.labels import decode_labels, decode_sample, label_table, map_labels
from tests.helpers.mutation import outcomes
from tests.helpers.tiny import photo

LABELS = np.random.default_rng(0).integers(0, 5, (24, 32)).astype(np.uint8)
COUNTS = pytest.mark.parametrize("count", [15, pytest.param(300, marks=pytest.mark.slow)])
TEXT = 2000  # characters that a decoder may print about a file
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged tags


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photos():
    image = Image.fromarray(photo(24, 32))
    exif = image.getexif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    animation = {"save_all": True, "append_images": [image.rotate(90)]}
    return {
        "jpeg": encoded(image, "JPEG", exif=exif),
        "progressive": encoded(image, "JPEG", progressive=True),
        "mpo": encoded(image, "MPO", **animation),
        "png": encoded(image, "PNG", exif=exif),
        "apng": encoded(image, "PNG", **animation),
        "gray16": encoded(Image.fromarray(LABELS.astype(np.uint16)), "PNG"),
        "tiff": encoded(image, "TIFF"),
        "lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "deflate": encoded(image, "TIFF", compression="tiff_deflate"),
        "tiff_jpeg": encoded(image, "TIFF", compression="jpeg"),
        "webp": encoded(image, "WEBP", exif=exif),
        "animated webp": encoded(image, "WEBP", **animation),
        "bmp": encoded(image, "BMP"),
        "gif": encoded(image, "GIF", **animation),
        "jpeg2000": encoded(image, "JPEG2000"),
        "avif": encoded(image, "AVIF"),
        "ppm": encoded(image, "PPM"),
    }


def label_maps():
    indexed = Image.fromarray(LABELS).convert("P")
    indexed.putpalette(list(range(200)))
    gray, gray16 = Image.fromarray(LABELS), Image.fromarray(LABELS.astype(np.uint16))
    return {
        "png": encoded(gray, "PNG"),
        "png16": encoded(gray16, "PNG"),
        "indexed png": encoded(indexed, "PNG"),
        "png of 4 bits": encoded(indexed, "PNG", bits=4),
        "tiff": encoded(gray, "TIFF", compression="tiff_lzw"),
        "tiff16": encoded(gray16, "TIFF"),
        "indexed tiff": encoded(indexed, "TIFF"),
        "bmp": encoded(gray, "BMP"),
        "indexed bmp": encoded(indexed, "BMP"),
        "gif": encoded(indexed, "GIF"),
    }


@COUNTS
@pytest.mark.parametrize("kind", photos())
def test_mutated_photos(tmp_path, capfd, kind, count):
    path = tmp_path / "photo.img"
    ends = outcomes(path, photos()[kind], count, lambda: open_photo(path), PhotoError)
    assert ends["PhotoError"] > 0
    assert sum(map(len, capfd.readouterr())) < TEXT * count


@COUNTS
@pytest.mark.parametrize("kind", photos())
def test_mutated_photos_in_training(tmp_path, kind, count):
    path = tmp_path / "photo.img"
    decode = lambda: decode_sample(path.read_bytes(), LABELS, str(path), "labels.png")
    assert outcomes(path, photos()[kind], count, decode, DataError)["DataError"] > 0


@COUNTS
@pytest.mark.parametrize("kind", label_maps())
def test_mutated_label_maps(tmp_path, kind, count):
    """What is read holds only known ids."""
    path, table = tmp_path / "labels.png", label_table(5, 255)

    def decode():
        labels = map_labels(decode_labels(path.read_bytes(), str(path)), table, str(path))
        assert labels.ndim == 2 and set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}

    assert outcomes(path, label_maps()[kind], count, decode, DataError)["DataError"] > 0


@COUNTS
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["classes.csv", "classes.txt"])
def test_mutated_class_tables(tmp_path, encoding, name, count):
    classes = ClassTable(
        ("wall", "sky, blue", "Café"), np.array([[1, 2, 3], [4, 5, 6], [7, 8, 255]], np.uint8), (1, 2, 3)
    )
    write_classes(tmp_path / "written.csv", classes)
    text = (tmp_path / "written.csv").read_text("utf-8")
    if name == "classes.txt":
        text = "0 wall 1 2 3\n1 blue sky 4 5 6\n2 Café 7 8 255\n"
    path = tmp_path / "own" / name
    path.parent.mkdir()
    ends = outcomes(path, text.encode(encoding), count, lambda: folder_classes(path.parent), DataError)
    assert ends["DataError"] > 0


@pytest.mark.parametrize(
    "text",
    [
        "0 wall 1 2 3 " + "x" * 10**6,
        "x" * 10**6,
        "0," * 10**6,
        "id,r,g,b,name\n" + "9" * 10**5 + ",1,1,1,n",
        "id,r,g,b,name\n0," + "9" * 10**5 + ",1,1,1,n",
        'id,r,g,b,name\n"' + "n" * 10**5,
        ",".join(f"column{index}" for index in range(10**5)),
    ],
    ids=range(7),
)
def test_messages_about_long_lines_are_short(tmp_path, text):
    for name in ("table.csv", "classes.txt"):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError) as error:
            load_classes(str(tmp_path / name)) if name.endswith(".csv") else folder_classes(tmp_path)
        assert len(str(error.value)) < 300 + len(str(tmp_path)) and "\n" not in str(error.value)


def test_postscript_is_not_run(tmp_path):
    """Pillow hands it to Ghostscript, which runs it; a program in it may never end."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n")
    with pytest.raises(PhotoError, match=r"photo.jpg: holds PostScript, not pixels; save it as PNG"):
        open_photo(path)
