"""Image decoding against Pillow, and what happens to files that are no good."""

import io
import pickle

import cv2
import numpy as np
import pytest
from PIL import Image

from zoo.data.loading import ImageReadError, decode_image, is_image_file, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 37, 3), dtype=np.uint8)
# Smooth, so that the decoders' different chroma upsampling stays small.
SMOOTH = cv2.resize(np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8), (64, 48))


def encoded(image, format, **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels(format):
    assert np.array_equal(decode_image(encoded(PIXELS, format)), PIXELS)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossy_formats_agree_with_pillow(format, mode):
    data = encoded(Image.fromarray(SMOOTH).convert(mode), format, quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode_image(data).astype(int) - expected).mean() < 1.0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_modes_become_rgb_as_pillow_converts_them(mode):
    image = Image.fromarray(PIXELS).convert("RGB")
    if mode == "RGBA":
        image.putalpha(Image.fromarray(PIXELS[:, :, 0]))
    elif mode == "LA":
        image = image.convert("L")
        image.putalpha(Image.fromarray(PIXELS[:, :, 0]))
    elif mode == "LAB":
        image = Image.merge("LAB", image.split())
    else:
        image = image.convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "YCbCr", "LAB") else "PNG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if mode in ("LA", "RGBA"):  # over white
        alpha = PIXELS[:, :, :1] / 255
        expected = np.rint(expected * alpha + 255 * (1 - alpha)).astype(np.uint8)
    assert np.array_equal(decode_image(data), expected)


def test_cmyk_jpeg_is_pillows():
    data = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("ending", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_their_upper_8(ending, channels):
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, channels), dtype=np.uint16)
    data = cv2.imencode(ending, values)[1].tobytes()  # OpenCV writes BGR
    expected = np.broadcast_to((values >> 8).astype(np.uint8), (9, 7, 3))[:, :, ::-1]
    assert np.array_equal(decode_image(data), expected)


def test_32_bit_integers_are_read_where_their_range_is_known():
    assert np.array_equal(decode_image(encoded(np.full((3, 4), 65535, np.int32), "TIFF")), np.full((3, 4, 3), 255))
    with pytest.raises(ImageReadError, match="between 70000 and 70000"):
        decode_image(encoded(np.full((3, 4), 70000, np.int32), "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
    data = encoded(
        frames[0], format, save_all=True, append_images=frames[1:], **({} if format == "PNG" else {"loop": 0})
    )
    assert np.abs(decode_image(data).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(SMOOTH)
    data = encoded(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    upright = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Pillow's Transpose member
    expected = np.asarray(image if orientation == 1 else image.transpose(Image.Transpose(upright[orientation])))
    result = decode_image(data)
    assert result.shape == expected.shape
    assert result.flags.c_contiguous
    assert np.abs(result.astype(int) - expected.astype(int)).mean() < (3 if format == "JPEG" else 1e-9)


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"xx"])
def test_damaged_metadata_does_not_cost_the_image(exif):
    data = encoded(SMOOTH, "JPEG", quality=95, exif=exif)
    assert np.abs(decode_image(data).astype(int) - SMOOTH).mean() < 3


def test_metadata_that_pillow_gives_up_on(monkeypatch):
    def fail(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    data = encoded(SMOOTH, "JPEG", quality=95)
    assert decode_image(data).shape == SMOOTH.shape


def test_orientation_of_images_that_pillow_decodes():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(SMOOTH).convert("CMYK")
    result = decode_image(encoded(image, "JPEG", exif=exif))
    assert result.shape == (64, 48, 3)
    expected = np.asarray(image.convert("RGB").transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(result.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_one_pixel_images(size, format):
    data = encoded(np.full((*size, 3), 200, np.uint8), format)
    assert decode_image(data).shape == (*size, 3)
    assert np.abs(decode_image(data).astype(int) - 200).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_truncated_files_are_named(tmp_path, format):
    data = encoded(PIXELS, format)
    path = tmp_path / f"half.{format.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageReadError, match="half") as caught:
        read_image(path)
    assert caught.value.path == str(path)


def test_large_truncated_jpeg_is_refused_not_filled_with_grey(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    data = encoded(noise, "JPEG")
    with pytest.raises(ImageReadError, match="truncated"):
        decode_image(data[: int(len(data) * 0.9)], "photo.jpg")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "no known image format"),
        (b"\x89PNG\r\n\x1a\n", "no known image format"),
    ],
)
def test_useless_files_are_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=f"bad.jpg.*{reason}"):
        read_image(path)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ImageReadError, match="gone.png.*No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageReadError, match="directory"):
        read_image(tmp_path)


def test_png_with_a_wrong_byte_is_refused():
    data = bytearray(encoded(PIXELS, "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageReadError):
        decode_image(bytes(data))


def test_float_images_are_refused():
    with pytest.raises(ImageReadError, match="floating-point"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="exceeds limit"):
        decode_image(encoded(PIXELS, "PNG"))


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(ImageReadError("cannot read image 'x'", "x")))
    assert (str(error), error.path) == ("cannot read image 'x'", "x")
    assert type(ImageReadError("from a worker's traceback")) is ImageReadError


@pytest.mark.parametrize(("name", "expected"), [("a.JPG", True), ("a.png", True), (".a.png", False), ("a.txt", False)])
def test_image_names(name, expected):
    assert is_image_file(name) is expected
