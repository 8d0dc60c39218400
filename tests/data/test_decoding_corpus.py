"""Every kind of image file there is, good and broken: the right pixels, or an error that names the file.

What the pixels should be is computed here from what was written, never by decoding.
"""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from zoo.data.loading import ImageReadError, decode_frames, read_image

RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (21, 34, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (21, 34), dtype=np.uint8)
# Smooth colours, which lossy formats keep to a few levels.
Y, X = np.mgrid[0:40, 0:56]
SMOOTH = np.stack([60 + 2 * X, 220 - 3 * Y, 90 + X + Y], axis=-1).astype(np.uint8)

#: EXIF orientation -> what was stored, given what a viewer should show
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def pil(array, format, mode=None, **options):
    image = array if isinstance(array, Image.Image) else Image.fromarray(np.ascontiguousarray(array))
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, format, **options)
    return out.getvalue()


def opencv(array, ending, *options):
    if array.ndim == 3:
        array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    good, data = cv2.imencode(ending, np.ascontiguousarray(array), list(options))
    assert good
    return data.tobytes()


def white(rgb, alpha):
    share = alpha[..., None].astype(float) / 255
    return np.rint(rgb * share + 255 * (1 - share)).astype(np.uint8)


def grey3(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


def png(width, height, bits, colour, rows, *chunks):
    """A PNG file from its parts: bit depths and chunks that no library writes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + r for r in rows))
    parts = [chunk(b"IHDR", head), *(chunk(k, b) for k, b in chunks), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def packed(values, bits):
    """Rows of small integers as PNG packs them."""
    rows = []
    for row in values:
        text = "".join(format(int(v), f"0{bits}b") for v in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def good_files():
    """(name, content, expected pixels, largest difference, largest mean difference)."""
    exact = [("PNG", "png"), ("BMP", "bmp"), ("TIFF", "tif"), ("PPM", "ppm"), ("TGA", "tga"), ("SGI", "sgi")]
    exact += [("PCX", "pcx"), ("QOI", "qoi"), ("IM", "im"), ("DIB", "dib"), ("DDS", "dds"), ("ICO", "ico")]
    for format, ending in exact:
        array = NOISE[:16, :16] if format == "ICO" else NOISE  # icons have few sizes
        yield f"rgb.{ending}", pil(array, format, **({"sizes": [(16, 16)]} if format == "ICO" else {})), array, 0, 0
    for format, ending in [x for x in exact if x[0] not in ("QOI", "DDS", "ICO")]:
        grey = NOISE[:, :, 0]
        yield f"grey.{ending}", pil(grey, format), grey3(grey), 0, 0
    for ending in (".png", ".bmp", ".tiff", ".ppm", ".webp", ".jp2", ".pnm", ".ras"):
        options = (cv2.IMWRITE_WEBP_QUALITY, 101) if ending == ".webp" else ()
        lossless = (cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000) if ending == ".jp2" else options
        limit = 8 if ending == ".jp2" else 0
        yield f"cv2{ending}", opencv(SMOOTH, ending, *lossless), SMOOTH, limit, limit / 4
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "lzma"):
        yield f"{compression}.tif", pil(NOISE, "TIFF", compression=compression), NOISE, 0, 0
    for level in range(0, 10, 3):
        yield f"level{level}.png", pil(NOISE, "PNG", compress_level=level), NOISE, 0, 0
    yield "lossless.webp", pil(NOISE, "WEBP", lossless=True), NOISE, 0, 0
    yield "reversible.jp2", pil(NOISE, "JPEG2000", irreversible=False), NOISE, 0, 0
    for quality in (75, 90, 100):
        for sampling in (0, 1, 2):
            for progressive in (False, True):
                data = pil(SMOOTH, "JPEG", quality=quality, subsampling=sampling, progressive=progressive)
                yield f"q{quality}-{sampling}-{progressive}.jpg", data, SMOOTH, 16, 3
        yield f"grey-q{quality}.jpg", pil(SMOOTH[:, :, 0], "JPEG", quality=quality), grey3(SMOOTH[:, :, 0]), 12, 3
        yield f"q{quality}.webp", pil(SMOOTH, "WEBP", quality=quality), SMOOTH, 24, 5
        yield f"cv2-q{quality}.jpg", opencv(SMOOTH, ".jpg", cv2.IMWRITE_JPEG_QUALITY, quality), SMOOTH, 16, 3
    if "AVIF" in Image.SAVE:
        yield "q95.avif", pil(SMOOTH, "AVIF", quality=95), SMOOTH, 16, 4
    yield from turned_files()
    yield from deep_files()
    yield from transparent_files()
    yield from odd_files()


def turned_files():
    """The eight EXIF orientations, and orientations that do not exist."""
    for orientation, store in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for format, ending, options, limits in (
            ("JPEG", "jpg", {"quality": 95}, (16, 3)),
            ("PNG", "png", {}, (0, 0)),
            ("TIFF", "tif", {}, (0, 0)),
            ("WEBP", "webp", {"lossless": True}, (0, 0)),
        ):
            for kind, array in (("rgb", SMOOTH), ("grey", grey3(SMOOTH[:, :, 1]))):
                stored = store(array) if kind == "rgb" else store(array)[:, :, 0]
                if format == "WEBP" and kind == "grey":
                    continue
                name = f"{kind}-turned{orientation}.{ending}"
                yield name, pil(stored, format, exif=exif, **options), array, *limits
        stored = Image.fromarray(np.ascontiguousarray(store(SMOOTH))).convert("CMYK")
        yield f"cmyk-turned{orientation}.jpg", pil(stored, "JPEG", exif=exif, quality=95), SMOOTH, 16, 4
        rgba = np.dstack([NOISE, ALPHA])
        yield f"rgba-turned{orientation}.png", pil(store(rgba), "PNG", exif=exif), white(NOISE, ALPHA), 0, 0
    for orientation in (0, 9, 255):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"no-such-turn{orientation}.png", pil(NOISE, "PNG", exif=exif), NOISE, 0, 0


def deep_files():
    """Bit depths from 1 to 32."""
    for bits in (1, 2, 4):
        values = RNG.integers(0, 2**bits, (9, 13))
        expected = grey3(np.rint(values * 255 / (2**bits - 1)).astype(np.uint8))
        yield f"grey{bits}.png", png(13, 9, bits, 0, packed(values, bits)), expected, 0, 0
        palette = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
        data = png(13, 9, bits, 3, packed(values, bits), (b"PLTE", palette.tobytes()))
        yield f"palette{bits}.png", data, palette[values], 0, 0
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    values = RNG.integers(0, 256, (9, 13), dtype=np.uint8)
    rows = [r.tobytes() for r in values]
    yield "palette8.png", png(13, 9, 8, 3, rows, (b"PLTE", palette.tobytes())), palette[values], 0, 0
    indexed = Image.fromarray(values).convert("L")
    indexed.putpalette(palette.tobytes())
    for format, ending in (("BMP", "bmp"), ("GIF", "gif"), ("TIFF", "tif"), ("TGA", "tga"), ("PCX", "pcx")):
        yield f"palette8.{ending}", pil(indexed, format), palette[values], 0, 0
    for format, ending in (
        ("PNG", "png"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
        ("PPM", "pbm"),
        ("XBM", "xbm"),
        ("MSP", "msp"),
    ):
        image = Image.fromarray(NOISE[:16, :32, 0] > 127)
        yield f"one-bit.{ending}", pil(image, format), grey3(np.where(NOISE[:16, :32, 0] > 127, 255, 0)), 0, 0
    deep = RNG.integers(0, 2**16, (9, 13, 3), dtype=np.uint16)
    upper = (deep >> 8).astype(np.uint8)
    for ending in (".png", ".tiff"):
        yield f"rgb16{ending}", opencv(deep, ending), upper, 0, 0
        yield f"grey16{ending}", opencv(deep[:, :, 0], ending), grey3(upper[:, :, 0]), 0, 0
    yield "rgb16.ppm", opencv(deep, ".ppm"), upper, 1, 1
    yield "grey16.pgm", opencv(deep[:, :, 0], ".pgm"), grey3(upper[:, :, 0]), 0, 0
    yield "grey16-pillow.tif", pil(Image.fromarray(deep[:, :, 0]), "TIFF"), grey3(upper[:, :, 0]), 0, 0
    big_endian = Image.frombytes("I;16B", (13, 9), deep[:, :, 0].astype(">u2").tobytes())
    yield "grey16-big.tif", pil(big_endian, "TIFF"), grey3(upper[:, :, 0]), 0, 0
    alpha = RNG.integers(0, 256, (9, 13), dtype=np.uint8)
    deep_alpha = np.dstack([deep, alpha.astype(np.uint16) * 257])
    yield "rgba16.png", opencv(deep_alpha, ".png"), white(upper, alpha), 1, 0.5
    yield "int32.tif", pil(Image.fromarray(deep[:, :, 0].astype(np.int32)), "TIFF"), grey3(upper[:, :, 0]), 0, 0


def transparent_files():
    """Alpha channels, transparent colours and palettes: over white."""
    rgba = np.dstack([NOISE, ALPHA])
    over = white(NOISE, ALPHA)
    for format, ending in (
        ("PNG", "png"),
        ("TIFF", "tif"),
        ("TGA", "tga"),
        ("QOI", "qoi"),
        ("SGI", "sgi"),
        ("DDS", "dds"),
    ):
        yield f"rgba.{ending}", pil(rgba, format), over, 0, 0
    yield "rgba-exact.webp", pil(rgba, "WEBP", lossless=True, exact=True), over, 0, 0
    yield "cv2-rgba.png", opencv(rgba, ".png"), over, 0, 0
    yield "cv2-rgba.tiff", opencv(rgba, ".tiff"), over, 0, 0
    grey_alpha = Image.merge("LA", [Image.fromarray(NOISE[:, :, 0].copy()), Image.fromarray(ALPHA)])
    for format, ending in (("PNG", "png"), ("TIFF", "tif"), ("TGA", "tga")):
        yield f"grey-alpha.{ending}", pil(grey_alpha, format), white(grey3(NOISE[:, :, 0]), ALPHA), 0, 0
    for level in (0, 1, 127, 128, 254, 255):
        alpha = np.full_like(ALPHA, level)
        yield f"alpha{level}.png", pil(np.dstack([NOISE, alpha]), "PNG"), white(NOISE, alpha), 0, 0
    values = RNG.integers(0, 4, (9, 13))
    palette = RNG.integers(0, 256, (4, 3), dtype=np.uint8)
    opacity = np.array([0, 80, 255, 200], np.uint8)
    data = png(13, 9, 2, 3, packed(values, 2), (b"PLTE", palette.tobytes()), (b"tRNS", opacity.tobytes()))
    yield "palette-alpha.png", data, white(palette[values], opacity[values]), 0, 0
    grey = RNG.integers(0, 8, (9, 13), dtype=np.uint8)
    data = png(13, 9, 8, 0, [r.tobytes() for r in grey], (b"tRNS", b"\0\5"))
    yield "grey-key.png", data, grey3(np.where(grey == 5, 255, grey)), 0, 0
    colours = RNG.integers(0, 3, (9, 13, 3), dtype=np.uint8)
    data = png(13, 9, 8, 2, [r.tobytes() for r in colours], (b"tRNS", b"\0\1\0\2\0\0"))
    keyed = (colours == (1, 2, 0)).all(-1, keepdims=True)
    yield "rgb-key.png", data, np.where(keyed, 255, colours), 0, 0
    deep = RNG.integers(0, 4, (9, 13), dtype=np.uint16) * 999
    data = png(13, 9, 16, 0, [r.astype(">u2").tobytes() for r in deep], (b"tRNS", struct.pack(">H", 999)))
    yield "grey16-key.png", data, grey3(np.where(deep == 999, 255, deep >> 8)), 0, 0
    gif = Image.fromarray(values.astype(np.uint8))
    gif.putpalette(palette.tobytes())
    opaque = np.where((values == 2)[..., None], 255, palette[values])
    yield "transparent.gif", pil(gif, "GIF", transparency=2), opaque, 0, 0


def odd_files():
    """Sizes, animations, misleading names, colour spaces, and bytes that do not belong there."""
    for height, width in ((1, 1), (1, 50), (50, 1), (3, 5), (17, 16), (255, 3), (2, 300)):
        array = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        flat = np.full_like(array, 180)
        for format, ending in (("PNG", "png"), ("BMP", "bmp"), ("TIFF", "tif"), ("PPM", "ppm")):
            yield f"{height}x{width}.{ending}", pil(array, format), array, 0, 0
        yield f"{height}x{width}.webp", pil(array, "WEBP", lossless=True), array, 0, 0
        yield f"{height}x{width}.jpg", pil(flat, "JPEG"), flat, 2, 2
        yield f"{height}x{width}.gif", pil(flat, "GIF"), flat, 0, 0
    for wrong in ("jpg", "png", "bmp", "tif", "webp", "txt", ""):
        yield f"png-named.{wrong}", pil(NOISE, "PNG"), NOISE, 0, 0
        yield f"bmp-named.{wrong}", pil(NOISE, "BMP"), NOISE, 0, 0
        yield f"jpeg-named.{wrong}", pil(SMOOTH, "JPEG", quality=95), SMOOTH, 16, 3
    frames = [np.full((12, 10, 3), c, np.uint8) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    images = [Image.fromarray(f) for f in frames]
    for format, ending, options in (
        ("GIF", "gif", {}),
        ("PNG", "png", {}),
        ("TIFF", "tif", {}),
        ("WEBP", "webp", {"lossless": True}),
    ):
        data = pil(images[0], format, save_all=True, append_images=images[1:], **options)
        yield f"animated.{ending}", data, frames[0], 1, 1
    yield "first.mpo", pil(SMOOTH, "MPO", save_all=True, append_images=[images[0]], quality=95), SMOOTH, 16, 3
    cmyk = RNG.integers(0, 256, (9, 13, 4), dtype=np.uint8).astype(np.int64)
    inverse = (255 - cmyk[..., :3]) * (255 - cmyk[..., 3:]) / 255
    image = Image.frombytes("CMYK", (13, 9), cmyk.astype(np.uint8).tobytes())
    yield "cmyk.tif", pil(image, "TIFF"), np.rint(inverse).astype(np.uint8), 1, 1
    flat = Image.new("CMYK", (16, 16), (200, 40, 90, 30))
    expected = np.rint((255 - np.array([200, 40, 90])) * (255 - 30) / 255).astype(np.uint8)
    yield "cmyk.jpg", pil(flat, "JPEG", quality=100), np.broadcast_to(expected, (16, 16, 3)), 4, 4
    yield "tail.jpg", pil(SMOOTH, "JPEG", quality=95) + b"\0" * 6000, SMOOTH, 16, 3
    yield "tail.png", pil(NOISE, "PNG") + b"tail", NOISE, 0, 0
    part = NOISE[:9, :13]
    yield "text.png", png(13, 9, 8, 2, [row.tobytes() for row in part], (b"tEXt", b"a\0b")), part, 0, 0
    yield "name with spaces and \u00fc.png", pil(NOISE, "PNG"), NOISE, 0, 0


def bad_files():
    """(name, content, words of the reason)."""
    yield "empty.png", b"", "empty"
    for content, name in (
        (b"hello", "text"),
        (b"\0" * 500, "zeros"),
        (b"<svg xmlns='x'/>", "drawing"),
        (b"%PDF-1.4", "pdf"),
    ):
        for ending in ("png", "jpg", "gif"):
            yield f"{name}.{ending}", content, "no known image format"
    yield "script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no known image format"
    sources = {
        "png": pil(NOISE, "PNG"),
        "jpg": pil(NOISE, "JPEG", quality=95),
        "progressive.jpg": pil(NOISE, "JPEG", quality=95, progressive=True),
        "gif": pil(NOISE, "GIF"),
        "bmp": pil(NOISE, "BMP"),
        "tif": pil(NOISE, "TIFF"),
        "lzw.tif": pil(NOISE, "TIFF", compression="tiff_lzw"),
        "webp": pil(NOISE, "WEBP", lossless=True),
        "ppm": pil(NOISE, "PPM"),
        "jp2": pil(NOISE, "JPEG2000"),
        "tga": pil(NOISE, "TGA"),
        "qoi": pil(NOISE, "QOI"),
    }
    for ending, data in sources.items():
        for share in (0.03, 0.3, 0.6, 0.9):
            yield f"cut{share}.{ending}", data[: int(len(data) * share)], ""
    for ending in ("png", "gif", "tif", "webp", "bmp"):
        data = sources[ending]
        yield f"head-only.{ending}", data[:8] + b"\xff" * 200, ""
    thumbnail = Image.Exif()
    thumbnail[0x010E] = "x\xff\xd9y"
    data = pil(NOISE, "JPEG", quality=95, exif=thumbnail.tobytes() + pil(NOISE[:4, :4], "JPEG"))
    yield "cut-with-thumbnail.jpg", data[: len(data) - 800], ""
    for at in (0.3, 0.6, 0.9):
        data = bytearray(sources["png"])
        data[int(len(data) * at)] ^= 0xFF
        yield f"wrong-byte{at}.png", bytes(data), ""
    # Decompression bombs: a small file that says it is huge, with and without the data to be so.
    yield "bomb.png", png(60000, 60000, 8, 2, []), "exceeds limit"
    yield "bomb-full.png", png(20000, 20000, 1, 0, [b"\0" * 2500] * 20000), "exceeds limit"
    for format, at, kind in (("BMP", 18, "<ii"), ("GIF", 6, "<HH"), ("TGA", 12, "<HH")):
        data = bytearray(pil(NOISE, format))
        struct.pack_into(kind, data, at, 60000, 60000)
        yield f"bomb.{format.lower()}", bytes(data), "exceeds limit"
    yield "bomb.ppm", b"P6 60000 60000 255\n" + b"\0" * 100, "exceeds limit"
    text = zlib.compress(b"\0" * (80 * 2**20))
    yield "text-bomb.png", png(2, 2, 8, 0, [b"\0\0"] * 2, (b"zTXt", b"k\0\0" + text)), ""
    yield "float.tif", pil(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"
    yield "float.pfm", opencv(np.ones((4, 4, 3), np.float32), ".pfm"), ""
    yield "radiance.hdr", opencv(np.ones((4, 4, 3), np.float32), ".hdr"), "no known image format"
    yield "int32.tif", pil(Image.fromarray(np.full((3, 4), 70000, np.int32)), "TIFF"), "accepted are 0 to 65535"
    yield "zero-wide.png", png(0, 5, 8, 2, []), ""
    yield "no-palette.png", png(4, 1, 8, 3, [b"\0\1\2\3"]), ""


GOOD = list(good_files())
BAD = list(bad_files())


def test_the_corpus_is_large():
    names = [n for n, *_ in GOOD] + [f"bad-{n}" for n, *_ in BAD]
    assert len(names) == len(set(names))
    assert len(names) >= 300


@pytest.mark.parametrize("name, data, expected, most, mean", GOOD, ids=[g[0] for g in GOOD])
def test_good_files_give_their_pixels(tmp_path, name, data, expected, most, mean):
    path = tmp_path / name
    path.write_bytes(data)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.shape == expected.shape
    difference = np.abs(image.astype(int) - expected.astype(int))
    assert difference.max() <= most
    assert difference.mean() <= mean


@pytest.mark.parametrize("name, data, words", BAD, ids=[b[0] for b in BAD])
def test_bad_files_are_named_with_the_reason(tmp_path, name, data, words):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageReadError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("format, ending", [("GIF", "gif"), ("PNG", "png"), ("TIFF", "tif"), ("WEBP", "webp")])
def test_all_frames(format, ending):
    frames = [np.full((12, 10, 3), c, np.uint8) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    images = [Image.fromarray(f) for f in frames]
    options = {"lossless": True} if format == "WEBP" else {}
    found = list(decode_frames(pil(images[0], format, save_all=True, append_images=images[1:], **options)))
    assert len(found) == 3
    for image, expected in zip(found, frames, strict=True):
        assert np.abs(image.astype(int) - expected).max() <= 1
    assert [f.shape for f in decode_frames(pil(images[0], format))] == [(12, 10, 3)]


def test_frames_after_the_broken_one_are_not_given():
    images = [Image.fromarray(NOISE), Image.fromarray(NOISE[::-1].copy()), Image.fromarray(NOISE[:, ::-1].copy())]
    data = pil(images[0], "GIF", save_all=True, append_images=images[1:])
    frames = decode_frames(data[: len(data) * 2 // 5], "cut.gif")
    with pytest.raises(ImageReadError, match=r"cut\.gif"):
        list(frames)
