"""Image decoding on damaged and invented bytes: an image, or an error that names the file; never anything else."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from zoo.data.loading import ImageReadError, decode_frames, decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


def encoded(format, mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, format, **options)
    return out.getvalue()


def animated(format):
    frames = [Image.fromarray(np.roll(PIXELS, i, axis=1)) for i in range(3)]
    out = io.BytesIO()
    frames[0].save(out, format, save_all=True, append_images=frames[1:])
    return out.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
SEEDS = [
    *(
        encoded(f)
        for f in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "TGA", "QOI", "PCX", "SGI", "IM")
    ),
    *(encoded("PNG", m) for m in ("1", "L", "LA", "P", "RGBA")),
    *(encoded("TIFF", m) for m in ("CMYK", "LAB", "YCbCr", "I;16")),
    encoded("TIFF", compression="tiff_lzw"),
    encoded("JPEG", "CMYK"),
    encoded("JPEG", progressive=True, exif=EXIF),
    encoded("PNG", exif=EXIF),
    *(animated(f) for f in ("GIF", "PNG", "WEBP", "TIFF")),
]


@st.composite
def damaged(draw):
    """A good file with bytes changed, cut out, doubled or moved, or with its end missing."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        length = draw(st.integers(1, 24))
        kind = draw(st.sampled_from(("byte", "cut", "double", "end", "insert", "swap")))
        if kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "end":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=24))
        else:
            other = draw(st.integers(0, len(data) - 1))
            data[at], data[other] = data[other], data[at]
    return bytes(data)


def check(data):
    for read in (lambda: [decode_image(data, NAME)], lambda: [f for _, f in zip(range(4), decode_frames(data, NAME))]):
        images, message = [], NAME
        try:
            images = read()
        except ImageReadError as error:
            message = str(error)
        assert NAME in message
        for image in images:
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
            assert image.size


NAME = "some/file.png"
OPTIONS = dict(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
FILES = st.one_of(damaged(), damaged(), damaged(), st.binary(max_size=300))


@pytest.fixture(autouse=True)
def small_bombs(monkeypatch):
    # A changed header may ask for anything up to the limit, which takes seconds each; the limit itself is tested.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, **OPTIONS)
@given(FILES)
def test_any_bytes(data):
    check(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=10_000, **{**OPTIONS, "derandomize": False})
@given(FILES)
def test_ten_thousand_files(data):
    check(data)
