"""Photos of every kind are opened as viewers show them, and found in folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fasseg_jax.data import images
from fasseg_jax.data.images import PhotoError, list_photos, open_photo, output_names

RGB = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
GRAY = np.random.default_rng(1).integers(0, 256, (10, 14), np.uint8)


def in_rgb(gray):
    return np.repeat(gray[..., None], 3, -1)


def test_rgb_and_transparency(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([RGB, GRAY])).save(tmp_path / "rgba.png")
    for name in ("rgb.png", "rgba.png"):
        photo = open_photo(tmp_path / name)
        assert photo.dtype == np.uint8
        assert photo.flags.writeable
        np.testing.assert_array_equal(photo, RGB)


@pytest.mark.parametrize("transparent", [False, True])
def test_gray(tmp_path, transparent):
    image = Image.fromarray(GRAY)
    if transparent:
        image = image.convert("LA")
    image.save(tmp_path / "gray.png")
    np.testing.assert_array_equal(open_photo(tmp_path / "gray.png"), in_rgb(GRAY))


def test_one_bit(tmp_path):
    Image.fromarray(GRAY > 127).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(open_photo(tmp_path / "bits.png"), in_rgb(np.where(GRAY > 127, 255, 0)))


@pytest.mark.parametrize("transparency", [None, 3])
def test_palette(tmp_path, transparency):
    palette = RGB.reshape(-1, 3)[:20]
    image = Image.fromarray(GRAY % 20)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "palette.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(open_photo(tmp_path / "palette.png"), palette[GRAY % 20])


@pytest.mark.parametrize("name", ["gray.png", "gray.tif", "gray.pgm"])
def test_sixteen_bit_gray_is_scaled(tmp_path, name):
    values = np.random.default_rng(2).integers(0, 65536, (10, 14)).astype(np.uint16)
    values[0, :2] = 0, 65535
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 14 10 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / name)
    expected = in_rgb((values / 257 + 0.5).astype(np.uint8))
    np.testing.assert_array_equal(open_photo(tmp_path / name), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_gray_without_a_white_level_is_stretched(tmp_path, dtype):
    values = (np.linspace(-3, 400, 140).reshape(10, 14)).astype(dtype)
    Image.fromarray(values).save(tmp_path / "gray.tif")
    expected = (values - values.min()) / (values.max() - values.min()) * 255
    np.testing.assert_allclose(open_photo(tmp_path / "gray.tif"), in_rgb(expected), atol=0.51)
    Image.fromarray(np.full((10, 14), 7, dtype)).save(tmp_path / "flat.tif")
    np.testing.assert_array_equal(open_photo(tmp_path / "flat.tif"), 0)


def test_cmyk_and_lab(tmp_path):
    smooth = np.array(Image.fromarray(RGB[:2, :2]).resize((64, 64), Image.BICUBIC))
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(open_photo(tmp_path / "cmyk.tif"), smooth)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
    ImageCms.applyTransform(Image.fromarray(smooth), transform).save(tmp_path / "lab.tif")
    # LAB in 8 bits is coarse for saturated colors.
    assert np.abs(open_photo(tmp_path / "lab.tif").astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    upright = {  # by the EXIF standard, which says where the first stored row and column belong
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(RGB),
    }
    np.testing.assert_array_equal(open_photo(tmp_path / "turned.png"), upright[orientation])


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(open_photo(tmp_path / "moving.png"), RGB)


def test_damaged_exif_does_not_hide_the_photo(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "photo.png", exif=b"Exif\0\0no TIFF header")
    np.testing.assert_array_equal(open_photo(tmp_path / "photo.png"), RGB)


def test_unreadable_files_are_named(tmp_path):
    Image.fromarray(np.tile(RGB, (20, 20, 1))).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-2000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in [
        ("cut.jpg", "truncated"),
        ("text.png", "not a picture"),
        ("empty.jpg", "not a picture"),
        ("folder.jpg", "directory|Permission denied"),
        ("absent.jpg", "No such file"),
    ]:
        with pytest.raises(PhotoError, match=reason) as error:
            open_photo(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_size_limit(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS", 140)
    np.testing.assert_array_equal(open_photo(tmp_path / "photo.png"), RGB)
    monkeypatch.setattr(images, "MAX_PIXELS", 138)
    with pytest.raises(PhotoError, match="million pixels"):
        open_photo(tmp_path / "photo.png")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_list_photos(tmp_path):
    wanted = ["a.PNG", "b.jpg", "sub/c.tiff", "sub/deep/d.webp"]
    for name in [*wanted[::-1], "notes.txt", ".hidden.jpg", "out/e.png", ".cache/f.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = list_photos(tmp_path, exclude=tmp_path / "out")
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == wanted
    assert found.ignored == 2
    assert tmp_path / "out/e.png" in list_photos(tmp_path).paths
    with pytest.raises(FileNotFoundError):
        list_photos(tmp_path / "absent")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("a.jpg b.png sub/a.jpg", "a b sub/a"),
        ("a.jpg a.png b.png", "a.jpg a.png b"),
        ("a.jpg A.png", "a.jpg A.png"),
        ("a.jpg a.png a.jpg.png", "a.jpg a.png a.jpg.png"),
        ("v1.2.jpg v1.3.jpg", "v1.2 v1.3"),
        ("a.jpg A.jpg", "a.jpg A.jpg"),  # nothing better is possible: they differ in case only
    ],
)
def test_output_names(paths, expected):
    assert output_names([Path(path) for path in paths.split()]) == [Path(name) for name in expected.split()]
