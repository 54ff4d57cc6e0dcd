"""Image files of every kind arrive as the same 8-bit RGB."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from data.dataloader import DATASETS
from data.image_files import read_image, read_picture
from tests.tiny_run import photograph
from util.errors import UserError

RAMP = np.linspace(0, 255, 48).round().astype(np.uint8).reshape(6, 8)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, ending):
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    pixels = np.asarray(read_image(path))
    np.testing.assert_array_equal(pixels, np.repeat(RAMP[..., None], 3, axis=-1))
    assert read_picture(path).grey


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg2000_of_any_depth(tmp_path, bits, channels):
    """White stays white; Pillow's rounding would make it black."""
    white, path = 2**bits - 1, tmp_path / "a.jp2"
    values = np.full((16, 16, channels), white, np.uint8 if bits == 8 else np.uint16)
    values[:8] = white // 3
    data = imagecodecs.jpeg2k_encode(values.squeeze(), level=0, bitspersample=bits)
    path.write_bytes(data)
    picture = read_picture(path)
    assert (picture.depth, picture.grey) == (8 if bits == 8 else 16, channels == 1)
    largest = 2**picture.depth - 1
    expected = np.where(np.arange(16)[:, None, None] < 8, largest / 3, largest)
    assert np.abs(picture.pixels - expected.astype(float)).max() <= 0.01 * largest


@pytest.mark.parametrize("white", [255, 1023, 65535])
def test_ppm_of_any_depth(tmp_path, white):
    values = np.linspace(0, white, 2 * 3 * 3).round().reshape(2, 3, 3)
    stored = values.astype(np.uint8 if white == 255 else ">u2").tobytes()
    (tmp_path / "a.ppm").write_bytes(b"P6 # made by hand\n3 2\n# 7 8\n%d\n" % white + stored)
    picture = read_picture(tmp_path / "a.ppm")
    largest = 2**picture.depth - 1
    assert picture.depth == (8 if white == 255 else 16)
    assert np.abs(picture.pixels / largest - values / white).max() < 1 / largest


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bands_that_are_left_out_are_told(tmp_path, capsys, dtype):
    values = np.arange(4 * 5 * 3).reshape(4, 5, 3).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels[..., 0], values[..., 0])
    assert "2 more band(s) beside the first" in capsys.readouterr().err


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path):
    import skimage.io

    colour = photograph(6, 8)
    path = tmp_path / "deep.tif"
    skimage.io.imsave(path, colour.astype(np.uint16) * 257, check_contrast=False)
    np.testing.assert_array_equal(np.asarray(read_image(path)), colour)


def test_floats_are_read_from_zero_to_one_and_refused_beyond(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(RAMP.astype(np.float32) / 255).save(path)
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 0], RAMP)
    Image.fromarray(RAMP.astype(np.float32)).save(path)
    with pytest.raises(UserError, match="values from 0 to 255, expected 0 to 1"):
        read_image(path)


def test_orientation_is_applied(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.asarray(read_image(path))
    assert upright.shape == (32, 16, 3)
    assert upright[:12].min() > 200
    assert upright[20:].max() < 50


def test_grey_palette_and_cmyk_become_rgb(tmp_path):
    colour = Image.fromarray(photograph(16, 16))
    colour.convert("L").save(tmp_path / "grey.png")
    colour.quantize(64).save(tmp_path / "palette.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.tif")
    for name, expected in (
        ("grey.png", colour.convert("L").convert("RGB")),
        ("palette.png", colour.quantize(64).convert("RGB")),
        ("cmyk.tif", colour),
    ):
        difference = np.asarray(read_image(tmp_path / name)).astype(int) - np.asarray(expected)
        assert np.abs(difference).max() <= 1, name
    assert [read_picture(tmp_path / n).grey for n in ("grey.png", "palette.png", "cmyk.tif")] == [
        True,
        False,
        False,
    ]


def test_transparent_parts_are_white_and_alpha_is_told(tmp_path):
    path = tmp_path / "alpha.png"
    pixels = np.dstack([photograph(8, 8), np.full((8, 8), 255, np.uint8)])
    pixels[:4, :, 3] = 0
    Image.fromarray(pixels).save(path)
    image = np.asarray(read_image(path))
    assert (image[:4] == 255).all()
    np.testing.assert_array_equal(image[4:], pixels[4:, :, :3])
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, pixels[..., :3])
    np.testing.assert_array_equal(picture.alpha, pixels[..., 3])


def test_palette_with_a_transparent_colour_has_alpha(tmp_path):
    path = tmp_path / "palette.png"
    image = Image.new("P", (4, 4))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 1)
    image.save(path, transparency=1)
    alpha = np.asarray(read_picture(path).alpha)
    assert alpha[0, 0] == 0
    assert (alpha.ravel()[1:] == 255).all()


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_files_that_are_no_images_are_told(tmp_path, content):
    path = tmp_path / "broken.png"
    if content is None:
        Image.fromarray(photograph(64, 64)).save(path)
        content = path.read_bytes()[:200]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        read_image(path)


def test_pad_and_tile_keep_the_size_and_crop_refuses_small_images(tmp_path):
    Image.fromarray(photograph(20, 50)).save(tmp_path / "a.png")
    build = DATASETS.get("folder")
    for fit in ("pad", "tile"):
        assert build(str(tmp_path), fit, image_size=32).load("a.png").shape == (3, 20, 50)
    assert build(str(tmp_path), "resize", image_size=32).load("a.png").shape == (3, 32, 32)
    with pytest.raises(UserError, match="50x20 is smaller than the model's 32x32; use --fit pad"):
        build(str(tmp_path), "crop", image_size=32).load("a.png")


def test_a_face_that_needs_no_download_is_aligned():
    """Eyes, its darkest spots at that height, lie where those of aligned faces do."""
    face = DATASETS.get("skimage_face")(image_size=64)
    (name,) = face.names
    image = face.load(name)
    assert image.shape == (3, 64, 64)
    eyes = image.mean(0)[27:33]
    left, right = eyes[:, 18:30].min(0).values.argmin(), eyes[:, 34:46].min(0).values.argmin()
    assert abs(int(left) + 18 - 23.5) <= 2
    assert abs(int(right) + 34 - 40.25) <= 2
