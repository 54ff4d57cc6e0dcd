"""Pictures, masks and kernels of other people: read as they are meant, or refused."""

import io
import os
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from data.arrays import read_array
from data.colour import srgb_profile
from data.dataloader import DATASETS, find_images
from data.image_files import encode_png, read_image, read_picture, read_values
from data.masks import MaskConfig
from guided_diffusion.measurements import read_kernel
from tests.tiny_run import photograph, run, save, write_configs
from util.errors import UserError
from util.img_utils import to_pixels, to_tensor

COLOUR = photograph(24, 32)
DEEP = COLOUR.astype(np.uint16) * 257
GREY = COLOUR[..., 0]


def test_tensors_of_eight_bits_are_torchs():
    import torch

    expected = torch.from_numpy(COLOUR).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(to_tensor(COLOUR), expected)
    assert torch.equal(to_tensor(Image.fromarray(COLOUR)), expected)
    np.testing.assert_array_equal(to_pixels(to_tensor(COLOUR)), COLOUR)
    exact = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_pixels(to_tensor(np.dstack([exact] * 3)), 16)[..., 1], exact)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_planes_byte_order_and_compression(tmp_path, byteorder, compression, planar):
    path = tmp_path / "a.tif"
    data = DEEP if planar == "contig" else np.moveaxis(DEEP, -1, 0)
    options = {"byteorder": byteorder, "compression": compression, "planarconfig": planar}
    tifffile.imwrite(path, data, photometric="rgb", **options)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, DEEP)
    assert picture.depth == 16
    np.testing.assert_array_equal(np.asarray(read_image(path)), COLOUR)


def test_planar_tiff_of_eight_bits(tmp_path):
    path = tmp_path / "a.tif"
    planes = np.moveaxis(COLOUR, -1, 0)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_picture(path).pixels, COLOUR)


def test_white_is_zero(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, 65535 - GREY.astype(np.uint16) * 257, photometric="miniswhite")
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, np.dstack([GREY.astype(np.uint16) * 257] * 3))
    assert picture.grey
    tifffile.imwrite(path, 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(np.asarray(read_image(path))[..., 2], GREY)


def test_twelve_bits(tmp_path):
    twelve = (DEEP >> 4).astype(np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, twelve, photometric="rgb", bitspersample=12)
    expected = np.rint(twelve * (65535 / 4095))
    np.testing.assert_allclose(read_picture(path).pixels, expected, atol=1)


def test_twelve_bits_in_sixteen_are_told(tmp_path, capsys):
    path = tmp_path / "dark.tif"
    tifffile.imwrite(path, (DEEP >> 4).astype(np.uint16), photometric="rgb")
    read_picture(path)
    assert "the largest value is" in capsys.readouterr().err
    tifffile.imwrite(path, DEEP, photometric="rgb")
    read_picture(path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_float_tiff_of_colours(tmp_path, kind):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, (COLOUR / 255).astype(kind), photometric="rgb")
    found = read_picture(path).pixels / 257.0
    assert np.abs(found - COLOUR).max() < (0.2 if kind is np.float16 else 0.01)
    tifffile.imwrite(path, (COLOUR / 100).astype(kind), photometric="rgb")
    with pytest.raises(UserError, match="expected 0 to 1"):
        read_picture(path)


def test_tiff_with_alpha_and_orientation(tmp_path):
    path = tmp_path / "a.tif"
    alpha = np.full((24, 32, 1), 65535, np.uint16)
    alpha[:12] = 0
    tags = [(0x0112, "H", 1, 6, True)]
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "extratags": tags}
    tifffile.imwrite(path, np.concatenate([DEEP, alpha], -1), **options)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels, np.rot90(DEEP, -1))
    np.testing.assert_array_equal(picture.alpha, np.rot90(alpha[..., 0], -1))
    assert (picture.on_white()[:, 12:] == 65535).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    tags = [(0x0112, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", DEEP, photometric="rgb", extratags=tags)
    expected = np.asarray(read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif")), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits(tmp_path, channels):
    values = np.dstack([DEEP, DEEP[..., :1]])[..., 2 : 2 + channels] if channels < 3 else (
        np.dstack([DEEP, DEEP[..., :1]])[..., :channels]
    )  # fmt: skip
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.squeeze(values).copy()))
    picture = read_picture(tmp_path / "a.png")
    assert picture.grey == (channels < 3)
    expected = values[..., :3] if channels > 2 else np.dstack([values[..., 0]] * 3)
    np.testing.assert_array_equal(picture.pixels, expected)
    if channels in (2, 4):
        np.testing.assert_array_equal(picture.alpha, values[..., -1])
    else:
        assert picture.alpha is None


def wide_profile() -> bytes:
    """A linear profile of large primaries, built by hand: an ICC v2 matrix profile."""

    def s15(x):
        return struct.pack(">i", round(x * 65536))

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(map(s15, values))

    # The D50 primaries of Display P3, with a gamma of 2.2.
    tags = {
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011),
        b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        b"rTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0",
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"P\0" + bytes(78),
        b"cprt": b"text\0\0\0\0-\0\0\0",
    }
    offset, table, body = 128 + 4 + 12 * (len(tags) + 2), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        if name == b"rTRC":
            for twin in (b"gTRC", b"bTRC"):
                table += twin + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = bytearray(128)
    head[0:4] = struct.pack(">I", offset + len(body))
    head[8:12], head[12:24] = b"\x02\x10\0\0", b"mntrRGB XYZ "
    head[36:40], head[68:80] = b"acsp", s15(0.9642) + s15(1.0) + s15(0.8249)
    return bytes(head) + struct.pack(">I", len(tags) + 2) + table + body


def expected_srgb(pixels: np.ndarray) -> np.ndarray:
    """The same transform by its formulas: gamma 2.2, P3 to sRGB, the sRGB curve; on [0, 255]."""
    to_xyz = np.array(
        [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]]
    )
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    linear = (pixels / 255) ** 2.2 @ to_xyz.T @ np.linalg.inv(srgb).T
    linear = linear.clip(0, 1)
    curve = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return curve * 255


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp", "png16", "tif16"])
def test_colour_profiles_are_converted_to_srgb(tmp_path, kind):
    path = tmp_path / f"a.{kind.removesuffix('16')}"
    if kind == "png16":
        data = imagecodecs.png_encode(DEEP)
        chunk = b"P\0\0" + zlib.compress(wide_profile())
        crc = struct.pack(">I", zlib.crc32(b"iCCP" + chunk))
        path.write_bytes(
            data[:33] + struct.pack(">I", len(chunk)) + b"iCCP" + chunk + crc + data[33:]
        )
    elif kind == "tif16":
        tifffile.imwrite(path, DEEP, photometric="rgb", iccprofile=wide_profile())
    else:
        options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
        options = {"lossless": True} if kind == "webp" else options
        Image.fromarray(COLOUR).save(path, icc_profile=wide_profile(), **options)
    picture = read_picture(path)
    scale = 257 if picture.depth == 16 else 1
    difference = np.abs(picture.pixels / scale - expected_srgb(COLOUR))
    assert difference.mean() < {"jpg": 1.5, "png16": 0.1, "tif16": 0.1}.get(kind, 0.5)
    assert difference.max() < (8 if kind == "jpg" else 1.6)


def test_a_profile_of_srgb_changes_nothing(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path, icc_profile=srgb_profile())
    np.testing.assert_array_equal(read_picture(path).pixels, COLOUR)
    Image.fromarray(GREY).save(path, icc_profile=wide_profile())  # of another colour model
    np.testing.assert_array_equal(read_picture(path).pixels[..., 0], GREY)


def test_a_broken_profile_is_told_and_passed_over(tmp_path, capsys):
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path, icc_profile=b"not a profile")
    np.testing.assert_array_equal(read_picture(path).pixels, COLOUR)
    assert "a.png: its colour profile cannot be used" in capsys.readouterr().err


def test_inks_with_a_profile_are_read(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(COLOUR).convert("CMYK").save(path, icc_profile=wide_profile(), quality=100)
    assert np.abs(np.asarray(read_image(path)).astype(int) - COLOUR).max() < 12


@pytest.mark.parametrize("pixels", [COLOUR, DEEP, GREY, DEEP[..., 0]])
def test_results_carry_profile_and_resolution(tmp_path, pixels):
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(pixels, (300.0, 150.0)))
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((300, 150), abs=0.02)
        if pixels.ndim == 3:
            assert image.info["icc_profile"] == srgb_profile()
        image.load()
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels[..., 0], pixels.reshape(24, 32, -1)[..., 0])
    assert picture.dpi == pytest.approx((300, 150), abs=0.02)
    profile = ImageCms.getOpenProfile(io.BytesIO(srgb_profile()))
    assert "sRGB" in ImageCms.getProfileDescription(profile)


def test_sixteen_bit_results_on_demand(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    deep = np.clip(DEEP.astype(int) + np.arange(32)[None, :, None], 0, 65535).astype(np.uint16)
    tifffile.imwrite(images / "a.tif", deep, photometric="rgb", resolution=(200, 200))
    arguments = write_configs(tmp_path, "gaussian_blur")
    more = ["--data_root", images, "--fit", "pad", "--output_depth", "16"]
    assert run(*arguments, *more) == 0
    results = tmp_path / "results" / "gaussian_blur"
    label = read_picture(results / "label" / "a.png")
    np.testing.assert_array_equal(label.pixels, deep)
    assert label.dpi == pytest.approx((200, 200), abs=0.02)
    assert read_picture(results / "recon" / "a.png").depth == 16
    assert run(*arguments, "--data_root", images, "--fit", "pad", "--overwrite") == 0
    assert read_picture(results / "recon" / "a.png").depth == 8


def test_several_pictures_in_one_file(tmp_path, capsys):
    frames = [Image.fromarray(photograph(24, 32, seed)) for seed in range(3)]
    for name in ("a.gif", "b.tif", "c.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        first = np.asarray(read_image(tmp_path / name)).astype(int)
        assert np.abs(first - np.asarray(frames[0])).mean() < 10
        assert f"{name}: holds 3 pictures; the first is taken" in capsys.readouterr().err


def test_files_without_an_ending_are_read_by_what_they_hold(tmp_path, capsys):
    for name in ("a.png", "b.ppm", "c.tga", "d.jpe", "e.JP2"):
        kind = {"d.jpe": "JPEG", "e.JP2": "JPEG2000"}.get(name)
        Image.fromarray(COLOUR).save(tmp_path / name, format=kind)
    (tmp_path / "a.png").rename(tmp_path / "IMG_1")
    (tmp_path / "README").write_text("no picture")
    (tmp_path / "light.exr").write_bytes(b"v/1\x01")
    names = [path.name for path in find_images(tmp_path)]
    assert names == ["IMG_1", "b.ppm", "c.tga", "d.jpe", "e.JP2"]
    assert "1 .exr" in capsys.readouterr().err
    for name in names:
        assert read_image(tmp_path / name).size == (32, 24)


def test_no_program_is_run_for_a_picture(tmp_path):
    """PostScript under the name of a PNG: Pillow would hand it to Ghostscript."""
    Image.fromarray(COLOUR).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="not a readable image"):
        read_picture(tmp_path / "a.png")


KERNEL = np.outer(np.arange(1.0, 6), [0.5, 3, 1, 0, 0.25])
KERNEL /= KERNEL.sum()


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "mat", "csv", "txt", "float.tif", "16.png"])
def test_kernels_keep_their_values(tmp_path, kind):
    import scipy.io
    import torch

    path = str(tmp_path / f"k.{kind}")
    if kind == "npy":
        np.save(path, KERNEL)
    elif kind == "npz":
        np.savez(path, k=KERNEL)
    elif kind == "pt":
        torch.save(torch.from_numpy(KERNEL), path)
    elif kind == "mat":
        scipy.io.savemat(path, {"kernel": KERNEL, "name": "k"})
    elif kind in ("csv", "txt"):
        np.savetxt(path, KERNEL, delimiter="," if kind == "csv" else " ")
    elif kind == "float.tif":
        tifffile.imwrite(path, KERNEL.astype(np.float32))
    else:
        scaled = (KERNEL / KERNEL.max() * 65535).round().astype(np.uint16)
        Image.fromarray(scaled).save(path)
    picture = kind in ("float.tif", "16.png")
    found = read_kernel(path)
    expected = KERNEL[::-1, ::-1] if picture else KERNEL
    assert np.abs(found - expected).sum() < 1e-4
    assert np.abs(read_kernel(path, "psf") - KERNEL[::-1, ::-1]).sum() < 1e-4
    assert np.abs(read_kernel(path, "correlation") - KERNEL).sum() < 1e-4


def test_even_rectangular_and_partly_negative_kernels(tmp_path, capsys):
    kernel = np.zeros((4, 6))
    kernel[2, 3] = 1.2  # n // 2, the centre
    kernel[2, 2] = -0.2
    np.save(tmp_path / "k.npy", kernel)
    found = read_kernel(str(tmp_path / "k.npy"))
    assert found.shape == (5, 7)
    assert found[2, 3] == pytest.approx(1.2)
    assert found[2, 2] == pytest.approx(-0.2)
    assert (
        "read as a correlation kernel (--kernel_is psf turns it round)" in capsys.readouterr().err
    )
    from guided_diffusion.measurements import KernelBlur, OperatorContext

    x = to_tensor(photograph(20, 20))[None]
    blurred = KernelBlur(OperatorContext(20, 20), found)(x)
    np.testing.assert_allclose(
        blurred[..., 5, 5].numpy(), (1.2 * x[..., 5, 5] - 0.2 * x[..., 5, 4]).numpy(), atol=1e-5
    )


def test_a_point_photographed_through_the_blur_is_its_psf(tmp_path):
    """Convolving a point with the psf gives the picture of the psf."""
    import torch

    from guided_diffusion.measurements import KernelBlur, OperatorContext

    Image.fromarray((KERNEL / KERNEL.max() * 65535).round().astype(np.uint16)).save(
        tmp_path / "k.png"
    )
    A = KernelBlur(OperatorContext(21, 21), read_kernel(str(tmp_path / "k.png")))
    point = torch.zeros(1, 3, 21, 21)
    point[..., 10, 10] = 1
    np.testing.assert_allclose(A(point)[0, 0, 8:13, 8:13].numpy(), KERNEL, atol=1e-4)


def test_transparent_parts_of_masks_and_kernels_are_nothing(tmp_path):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[:, :10] = 255
    white = np.full((24, 32, 3), 255, np.uint8)
    Image.fromarray(np.dstack([white, alpha])).save(tmp_path / "m.png")
    mask = read_array(str(tmp_path / "m.png"), "mask")
    np.testing.assert_allclose(mask, alpha / 255)
    assert not mask[:, 10:].any()
    Image.fromarray(np.dstack([GREY, alpha]), "LA").save(tmp_path / "k.png")
    assert not read_values(tmp_path / "k.png")[:, 10:].any()


def test_mask_readings_are_told_and_checked(tmp_path, capsys):
    """White is kept, or damage; nearly nothing kept fails with a hint; a blank hole is noticed."""
    photo = photograph(32, 32)
    photo[8:20, 8:20] = 255
    hole = np.zeros((32, 32), np.uint8)
    hole[8:20, 8:20] = 255
    files = tmp_path / "damaged"
    save(files / "a.png", photo)
    save(tmp_path / "masks" / "a.png", hole)
    arguments = [*write_configs(tmp_path, "inpainting"), "--measurements", files]
    masks = ["--masks", tmp_path / "masks" / "a.png"]
    assert run(*arguments, *masks) == 0
    told = capsys.readouterr().err
    assert "white is kept (--mask_is); of a.png 14.1 % are kept" in told
    assert "all pixels that the mask keeps have one colour" in told
    out = tmp_path / "results" / "inpainting"
    assert run(*arguments, *masks, "--mask_is", "damage", "--overwrite") == 0
    told = capsys.readouterr().err
    assert "white is damage (--mask_is); of a.png 85.9 % are kept" in told
    assert "one colour" not in told
    kept = np.asarray(Image.open(out / "mask" / "a.png")) > 0
    np.testing.assert_array_equal(kept, hole == 0)
    save(tmp_path / "masks" / "a.png", np.zeros((32, 32), np.uint8))
    assert run(*arguments, *masks, "--overwrite") == 1
    assert "keeps 0.00% of the pixels" in (told := capsys.readouterr().err)
    assert "use --mask_is damage" in told


def test_known_pixels_are_those_of_the_photograph(tmp_path):
    photo = photograph(32, 32)
    mask = np.full((32, 32), 255, np.uint8)
    mask[8:20, 8:20] = 0
    files = tmp_path / "damaged"
    save(files / "a.png", photo)
    save(tmp_path / "mask.png", mask)
    arguments = [*write_configs(tmp_path, "inpainting"), "--measurements", files]
    arguments += ["--masks", tmp_path / "mask.png", "--overwrite"]
    recon = tmp_path / "results" / "inpainting" / "recon" / "a.png"

    def changed(*more: str) -> int:
        assert run(*arguments, *more) == 0
        found = np.asarray(Image.open(recon)).astype(int)
        return np.abs(found - photo)[mask > 0].max()

    low = ["--set", "task.measurement.noise.sigma=0.01"]
    assert changed(*low) == 0
    assert changed(*low, "--no-keep_known") > 0
    assert changed() > 0  # sigma is 0.05
    assert changed("--keep_known") == 0
    assert not MaskConfig().keeps_known(0.01, measured=False)
    assert MaskConfig().keeps_known(0.0, measured=False)


def test_measurements_as_arrays(tmp_path, capsys):
    arguments = write_configs(tmp_path, "gaussian_blur")
    save(tmp_path / "images" / "a.png", photograph(32, 32))
    assert run(*arguments, "--data_root", tmp_path / "images") == 0
    measured = tmp_path / "results" / "gaussian_blur" / "input"
    again = ["--measurements", measured, "--save_dir", tmp_path / "again"]
    capsys.readouterr()
    assert run(*arguments, *again) == 0
    assert "1 picture(s) passed over for the array" in capsys.readouterr().err
    found = np.load(tmp_path / "again" / "gaussian_blur" / "input" / "a.npy")
    np.testing.assert_array_equal(found, np.load(measured / "a.npy"))
    files = tmp_path / "files"
    files.mkdir()
    np.save(files / "bytes.npy", COLOUR)
    np.savez(files / "deep.npz", DEEP[..., 0])
    np.save(files / "first.npy", np.moveaxis(COLOUR / 127.5 - 1, -1, 0))
    data = DATASETS.get("measurements")(str(files), image_size=32)
    expected = to_tensor(COLOUR).numpy()
    np.testing.assert_allclose(data.load("bytes.npy").numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(data.load("first.npy").numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(data.load("deep.npz").numpy()[2], expected[0], atol=1e-4)
    assert data.read("deep.npz").grey
    np.save(files / "range.npy", COLOUR.astype(float))
    np.save(files / "shape.npy", np.zeros((4, 5, 6, 7)))
    data = DATASETS.get("measurements")(str(files), image_size=32)
    with pytest.raises(UserError, match=r"a measurement lies on \[-1, 1\]"):
        data.load("range.npy")
    with pytest.raises(UserError, match="a measurement must be"):
        data.load("shape.npy")


def test_large_deep_pictures_take_no_more_memory_than_they_must(tmp_path):
    """The peak of reading 16-bit grey, beyond the tensor itself, per pixel."""
    import tracemalloc

    side = 1500
    Image.fromarray(np.full((side, side), 700, np.uint16)).save(tmp_path / "a.png")
    data = DATASETS.get("folder")(str(tmp_path), "pad", image_size=32)
    data.load("a.png")
    tracemalloc.start()
    data.load("a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / side**2 < 12 + 8  # float32 of three channels, and the file's values


def test_kernels_of_one_row(tmp_path):
    import scipy.io

    row = np.full((1, 15), 1 / 15)
    np.save(tmp_path / "k.npy", row)
    scipy.io.savemat(tmp_path / "k.mat", {"k": row})
    np.savetxt(tmp_path / "k.csv", row, delimiter=",")
    for name in ("k.npy", "k.mat", "k.csv"):
        assert read_kernel(str(tmp_path / name)).shape == (1, 15)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_signed_tiff_is_refused(tmp_path, kind):
    tifffile.imwrite(tmp_path / "a.tif", (COLOUR // 2).astype(kind), photometric="rgb")
    with pytest.raises(UserError, match=r"a\.tif"):
        read_picture(tmp_path / "a.tif")


def test_white_is_zero_says_nothing_of_the_alpha(tmp_path):
    alpha = np.zeros((24, 32), np.uint16)
    alpha[:, :7] = 65535
    data = np.dstack([65535 - GREY.astype(np.uint16) * 257, alpha])
    tifffile.imwrite(
        tmp_path / "a.tif", data, photometric="miniswhite", extrasamples=["unassalpha"],
        planarconfig="contig",
    )  # fmt: skip
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.alpha, alpha)
    np.testing.assert_array_equal(picture.pixels[..., 0], GREY.astype(np.uint16) * 257)


def test_folders_are_walked_without_opening_what_is_no_file(tmp_path):
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    (tmp_path / "list").mkdir()
    Image.fromarray(COLOUR).save(tmp_path / "list" / "b.png")
    (tmp_path / "list" / "manifest.train.jsonl").write_text("{}")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.png"]
    (tmp_path / "list" / "manifest.0.jsonl").write_text("{}")
    assert [p.name for p in find_images(tmp_path)] == ["a.png"]
