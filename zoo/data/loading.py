"""Decoding of image files to RGB uint8 arrays; a file that cannot be read raises an error that names it.

OpenCV decodes the common case (8-bit and 16-bit grey and RGB files). Pillow reads the headers of every file and decodes
what OpenCV gets wrong or not at all: CMYK, transparent, animated and palette images, TIFF, rarer containers, and files
whose end is missing (older OpenCV fills the missing part of a JPEG with grey and says nothing).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image

#: File name endings that are taken for images when a folder is searched.
IMAGE_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

#: Pillow's plugins that no file is given to: they start another program (EPS), play drawing commands (WMF), or know
#: only a header (BUFR, GRIB, HDF5, MPEG) or floating-point tables (FITS).
REFUSED_FORMATS = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"})

# Formats that OpenCV decodes like Pillow, apart from the modes excluded below.
_OPENCV_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}
_OPENCV_MODES = {"1", "L", "RGB", "I;16", "I;16B"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION = 0x0112
# EXIF orientation -> the numpy operation that turns the stored image upright.
_UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x[::-1].transpose(1, 0, 2),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x[:, ::-1].transpose(1, 0, 2),
}


class ImageReadError(ValueError):
    """An image file that cannot be read; the message has its path and the reason.

    It has a single positional argument, so that a DataLoader can raise it again in the main process.
    """

    def __init__(self, message: str, path: str = ""):
        super().__init__(message)
        self.path = path

    def __reduce__(self):
        return type(self), (str(self), self.path)


def _error(path: str, reason: object) -> ImageReadError:
    return ImageReadError(f"cannot read image {path!r}: {reason}", path)


def is_image_file(path: str | os.PathLike) -> bool:
    """Whether the name ends like an image's and is not hidden."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as RGB uint8 ``[H, W, 3]``, upright by its EXIF orientation; see :func:`decode_image`.

    Raises:
        ImageReadError: the file is missing, empty, truncated, corrupt or no image; the message has the path.
    """
    name = os.fspath(path)
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise _error(name, error.strerror or error) from error
    return decode_image(data, name)


def decode_image(data: bytes, path: str = "<bytes>") -> np.ndarray:
    """Decode an image file's content to RGB uint8 ``[H, W, 3]``.

    Grey becomes three equal channels, transparent pixels are laid over white, 16 bits keep their upper 8, an animation
    or a file of several pages gives its first frame, EXIF orientation is applied; colour profiles are not.

    Args:
        data: the whole file.
        path: its name, for messages.

    Raises:
        ImageReadError: the bytes are no complete image, more pixels than Pillow's limit against decompression bombs,
            or floating-point pixels (their range is unknown).
    """
    return _opened(data, path, lambda image: _decode_opened(image, data, path))


def decode_frames(data: bytes, path: str = "<bytes>") -> Iterator[np.ndarray]:
    """Decode all frames of an animation (or pages of a TIFF), one at a time, each as :func:`decode_image` does.

    Raises:
        ImageReadError: as :func:`decode_image`, when the frame in question is reached.
    """
    count = _opened(data, path, lambda image: 1 if _is_plain(image) else int(getattr(image, "n_frames", 1)))
    if count == 1:
        yield decode_image(data, path)
        return
    # One decoder for all frames, since each may be drawn over the one before.
    with _silent(), Image.open(io.BytesIO(data), formats=_formats()) as image:
        for number in range(count):
            yield _guarded(f"{path} (frame {number})", partial(_frame, image, number, data, path))


def pil_to_rgb(image: Image.Image, name: str = "<PIL image>") -> np.ndarray:
    """RGB uint8 ``[H, W, 3]`` of a Pillow image's current frame, by the rules of :func:`decode_image`.

    Raises:
        ImageReadError: it cannot be decoded, or has floating-point pixels.
    """

    def convert() -> np.ndarray:
        opened: Any = image  # an image that was opened, not made, has the name of its file
        file = getattr(opened, "filename", None)
        if image.format == "TIFF" and file:
            # Pillow turns a TIFF upright when it loads it, except when it maps the file into memory (Pillow 13).
            opened.filename = ""
            image.load()
            opened.filename = file
        return _turn(_pillow(image, name), 1 if image.format == "TIFF" else _exif_orientation(image))

    return _guarded(name, convert)


R = TypeVar("R")


def _formats() -> list[str]:
    """Names of the plugins in Pillow's order, those that others have registered too."""
    Image.init()
    return [name for name in Image.ID if name not in REFUSED_FORMATS]


def _opened(data: bytes, path: str, use: Callable[[Image.Image], R]) -> R:
    if not data:
        raise _error(path, "the file is empty (0 bytes)")

    def run() -> R:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            return use(image)

    return _guarded(path, run, len(data))


def _guarded(path: str, run: Callable[[], R], size: int | None = None) -> R:
    """Call ``run``; whatever Pillow raises becomes an :class:`ImageReadError` that names the file."""
    try:
        with _silent():
            return run()
    except ImageReadError:
        raise
    except Image.DecompressionBombError as error:
        raise _error(path, error) from error
    except Image.UnidentifiedImageError:
        known = "no known image format"
        raise _error(path, known if size is None else f"{known} ({size} bytes)") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ValueError, zlib.error ...
        raise _error(path, f"{type(error).__name__}: {error}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Where warnings are errors, without warnings: odd metadata is no reason to lose the image.

    Elsewhere nothing is done: the filters belong to the process, and threads that swap them disturb each other.
    """
    if any(action == "error" for action, *_ in warnings.filters):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    else:
        yield


def _decode_opened(image: Image.Image, data: bytes, path: str) -> np.ndarray:
    _check_mode(image, path)
    array = None
    if (
        image.format in _OPENCV_FORMATS
        and image.mode in _OPENCV_MODES
        and "transparency" not in image.info
        and _is_plain(image)
        and _has_end(image, data)
    ):
        array = _opencv(data)
    if array is None:
        array = _pillow(image, path)
    return _turn(array, _orientation(image, data))


def _frame(image: Image.Image, number: int, data: bytes, path: str) -> np.ndarray:
    image.seek(number)
    return _turn(_pillow(image, path), _orientation(image, data))


def _turn(array: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT.get(orientation, lambda x: x)(array))


def _check_mode(image: Image.Image, path: str) -> None:
    if image.mode == "F":
        raise _error(path, "its pixels are floating-point numbers; accepted are integer images")
    if image.mode == "P" and image.format == "PNG" and image.palette is None:
        raise _error(path, "its colours are numbers of a palette, which it lacks")


def _pillow(image: Image.Image, path: str) -> np.ndarray:
    _check_mode(image, path)
    if not image.mode.startswith("I"):
        if image.mode in _ALPHA_MODES or "transparency" in image.info:
            return over_white(np.asarray(image.convert("RGBA")))
        return np.array(image.convert("RGB"))
    # Pillow clips integers beyond 8 bits when it converts to RGB.
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise _error(path, f"its pixels are between {grey.min()} and {grey.max()}; accepted are 0 to 65535")
    see_through = image.info.get("transparency")
    if isinstance(see_through, int):
        grey[grey == see_through] = 65535
    return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """RGBA uint8 ``[H, W, 4]`` laid over white: RGB uint8 ``[H, W, 3]``, rounded to the nearest."""
    alpha = rgba[:, :, 3:].astype(np.uint16)
    mixed = rgba[:, :, :3] * alpha + 255 * (255 - alpha)  # at most 255 * 255
    return ((mixed + 127) // 255).astype(np.uint8)


def _is_plain(image: Image.Image) -> bool:
    return not getattr(image, "is_animated", False) or image.format == "MPO"


def _has_end(image: Image.Image, data: bytes) -> bool:
    """Whether the end mark of the format is where it should be; formats without one count as complete."""
    if image.format in ("JPEG", "MPO"):  # after the last scan, for a thumbnail before it has an end of its own
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    if image.format == "PNG":
        return b"IEND" in data[-4096:]
    return True


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation that is still to be applied; 1 (upright) where there is none, or none that can be read."""
    if image.format == "TIFF":  # Pillow has turned it when it loaded it
        return 1
    # For a PNG without an early eXIf chunk, getexif() would decode the whole image first.
    if image.format == "PNG" and b"eXIf" not in data and "exif" not in image.info:
        return 1
    return _exif_orientation(image)


def _exif_orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (
        Exception
    ):  # damaged metadata raises SyntaxError, struct.error, OSError ...: the pixels are good all the same
        return 1


def _opencv(data: bytes) -> np.ndarray | None:
    """RGB ``[H, W, 3]`` as stored, or None where OpenCV cannot decode it (Pillow then says why)."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
